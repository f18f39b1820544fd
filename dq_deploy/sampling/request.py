"""What a user asks to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..sources import GivenPictures

if TYPE_CHECKING:
    from ..engines.loading.choice import Runtime

Prompts = str | Path | Sequence[str]
"""A file with a prompt on each line, or the prompts themselves."""


@dataclass(frozen=True)
class Drawing(GivenPictures):
    """Which pictures to draw, and with what. Raises UsageError for numbers that are out of range.

    Each of the ``n`` pictures has a seed of its own, made of ``seed`` and its number, so it does not depend on ``batch_size`` (of models of
    pixels; the others draw one at a time). ``steps`` are the calibration's by default. ``prompts`` and ``classes`` of a class-conditional
    model (numbers, or "0-9,3"; all by default) are drawn in turn, with the ``guidance_scale`` that the model was calibrated with by
    default. A pipeline that begins with pictures takes ``image``, ``mask``, ``control_image`` and ``ip_adapter_image`` (files or images
    of PIL), and a ``strength``, by default the calibration's. A checkpoint runs in PyTorch; ``runtime`` is for bundles. ``compare_float``
    draws the float model's pictures too, and ``watch`` counts NaN and saturated codes of a bundle by timestep (engines/dropin/watch.py).
    ``cache`` is the threshold below which a bundle skips all but its first block (engines/step_cache). ``height`` and ``width`` are in
    pixels, the first calibrated ones by default.
    """

    n: int = 16
    seed: int = 0
    steps: int | None = None
    prompts: Prompts | None = None
    negative_prompt: str | None = None
    classes: str | Sequence[int] | None = None
    guidance_scale: float | None = None
    runtime: Runtime = "auto"
    compare_float: bool = True
    watch: bool = False
    cache: float | None = None
    batch_size: int = 16
    height: int | None = None
    width: int | None = None

    @property
    def picture_size(self) -> dict[str, int]:
        """The edges that were given, by name."""
        return {name: edge for name, edge in (("height", self.height), ("width", self.width)) if edge is not None}

    def __post_init__(self) -> None:
        problems = [f"n is {self.n}, and at least 1 is needed"] if self.n < 1 else []
        problems += [f"seed is {self.seed}, and cannot be negative"] if self.seed < 0 else []
        problems += [f"steps is {self.steps}, and at least 1 is needed"] if self.steps is not None and self.steps < 1 else []
        problems += [f"batch size is {self.batch_size}, and at least 1 is needed"] if self.batch_size < 1 else []
        edges = {"height": self.height, "width": self.width}
        problems += [f"{name} is {edge}, and at least 1 is needed" for name, edge in edges.items() if edge is not None and edge < 1]
        if problems:
            raise UsageError("; ".join(problems))
