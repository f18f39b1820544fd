"""What is measured for a page, beside what the manifests hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engines.choice import Runtime


@dataclass(frozen=True)
class Timing:
    """How to time bundles and engines against each other (``engines.bench``); ``baseline``: the float bundle, or the first, by default."""

    batches: Sequence[int] = (1,)
    runs: int = 30
    baseline: Path | None = None


@dataclass(frozen=True)
class Drawing:
    """Which pictures to draw (``sampling.draw``)."""

    n: int = 16
    seed: int = 0
    steps: int | None = None
    prompts: str | Path | Sequence[str] | None = None
    negative_prompt: str | None = None
    classes: str | Sequence[int] | None = None
    guidance_scale: float | None = None
    runtime: Runtime = "auto"


@dataclass(frozen=True)
class ReportRequest:
    """What to measure beside what the manifests hold; None and False leave a section out."""

    drawing: Drawing | None = Drawing()
    layer_error: bool = True
    check: bool = True
    timing: Timing | None = None
