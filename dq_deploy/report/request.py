"""What is measured for a page, beside what the manifests hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..sampling.request import Drawing


@dataclass(frozen=True)
class Timing:
    """How to time bundles and engines against each other (``engines.bench``); ``baseline``: the float bundle, or the first, by default."""

    batches: Sequence[int] = (1,)
    runs: int = 30
    baseline: Path | None = None


@dataclass(frozen=True)
class ReportRequest:
    """What to measure beside what the manifests hold; None and False leave a section out."""

    drawing: Drawing | None = field(default_factory=Drawing)
    layer_error: bool = True
    check: bool = True
    timing: Timing | None = None
