"""Where calibration data comes from: the project's own sampling loop, or the user's pipeline, with the conditions to sample under."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from ..errors import UsageError
from ..progress import Progress
from .calibration import Conditions, Model, Trajectories, collect_trajectories
from .classes import ClassSpace, class_space
from .config import QuantizeConfig


@dataclass(frozen=True)
class Request:
    """What the user asked the calibration to be conditioned on; None is "not given"."""

    conditions: Conditions | None = None
    null_conditions: Conditions | None = None
    classes: str | Sequence[int] | None = None


class CalibrationSource(Protocol):
    """Makes trajectories. ``examples`` are conditions [P, ...] of the right shapes and types, for capture."""

    @property
    def examples(self) -> Conditions: ...  # noqa: D102

    def collect(self, model: Model, seeds: range, progress: Progress) -> Trajectories:
        """Trajectories of the float model from these seeds."""

    def record(self) -> dict[str, Any]:
        """What the manifest says about it."""


@dataclass(frozen=True)
class LoopSource:
    """The project's own loop: unconditional and class-conditional models, and conditions given as tensors."""

    scheduler: Any
    shape: tuple[int, ...]
    config: QuantizeConfig
    examples: Conditions = field(default_factory=dict)
    null_conditions: Conditions | None = None
    classes: list[int] | None = None

    def collect(self, model: Model, seeds: range, progress: Progress) -> Trajectories:
        """As the protocol says."""
        return collect_trajectories(
            model, self.scheduler, steps=self.config.steps, seeds=seeds, shape=self.shape, conditions=self.examples,
            null_conditions=self.null_conditions, guidance_scale=self.config.guidance_scale, sampler=self.config.sampler,
            batch_size=self.config.batch_size, progress=progress,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """As the protocol says."""
        return {"from": "loop", "classes": self.classes, "guidance_scale": self.config.guidance_scale}


def calibration_source(
    request: Request, config: QuantizeConfig, *, model: nn.Module, model_config: dict[str, Any], scheduler: Any, shape: tuple[int, ...]
) -> CalibrationSource:
    """Choose the source that serves the model and what the user asked for.

    Raises UsageError where the two do not fit: classes for a model without them, guidance for an unconditional model.
    """
    guided = config.guidance_scale is not None and config.guidance_scale > 1
    if request.null_conditions is not None and not (request.conditions and guided):
        raise UsageError("null_conditions= are for guidance", "give conditions= and a guidance_scale above 1 with them")
    space = class_space(model, model_config)
    if request.conditions:
        return _from_tensors(request, config, scheduler, shape)
    if space is not None:
        return _from_classes(request, config, space, scheduler, shape)
    if request.classes is not None:
        raise UsageError("classes are given, and the model takes none", "leave the classes out")
    if config.guidance_scale is not None:
        raise UsageError("a guidance scale is given, and the model is unconditional", "leave the guidance scale out")
    return LoopSource(scheduler, shape, config)


def _from_tensors(request: Request, config: QuantizeConfig, scheduler: Any, shape: tuple[int, ...]) -> LoopSource:
    assert request.conditions is not None
    if request.classes is not None:
        raise UsageError("give conditions= or classes=, not both")
    given = {**request.conditions, **(request.null_conditions or {})}
    empty = [name for name, value in given.items() if value.dim() == 0 or len(value) == 0]
    if empty:
        raise UsageError(f"no values for the condition {', '.join(empty)}", "a condition is a tensor [P, ...] of P ≥ 1 values")
    return LoopSource(scheduler, shape, config, request.conditions, request.null_conditions)


def _from_classes(request: Request, config: QuantizeConfig, space: ClassSpace, scheduler: Any, shape: tuple[int, ...]) -> LoopSource:
    chosen = space.choose(request.classes)
    guided = config.guidance_scale is not None and config.guidance_scale > 1
    null = space.null_conditions() if guided else None
    return LoopSource(scheduler, shape, config, space.conditions(chosen), null, chosen)
