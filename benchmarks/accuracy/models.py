"""The models of the comparison: their float networks, and what they are drawn under."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from dq_deploy.errors import UsageError
from dq_deploy.quantization.calibration.classes import CLASS_INPUT, class_space
from dq_deploy.quantization.graph.capture import input_names
from dq_deploy.sources import Source, load_source

from .settings import Family

Dataset = Literal["fashion-mnist"]
DATASETS: dict[str, Dataset] = {"builtin:fashion-mnist-unet": "fashion-mnist", "builtin:fashion-mnist-dit": "fashion-mnist"}
"""Model → the data that it was trained on; other models have none, and then no features to be judged by."""


@dataclass(frozen=True)
class Reference:
    """A float model. Class-conditional ones are drawn without guidance, classes dealt evenly: sample i gets class i mod their number.

    Guidance would extrapolate between two forwards, and so judge the quantizer by a choice of the user.
    """

    source: Source

    @property
    def family(self) -> Family:
        """Which layer names to expect."""
        return "transformer" if self.source.component == "transformer" else "unet"

    @cached_property
    def input_names(self) -> list[str]:
        """Names of the forward's inputs in their order: the sample's, the timestep, the class if there is one."""
        return input_names(self.source.model, [CLASS_INPUT] if self.classes else [])

    @cached_property
    def classes(self) -> int:
        """Number of classes, 0 for an unconditional model. Raises UsageError for a model that needs other conditions."""
        parameters = list(inspect.signature(self.source.model.forward).parameters.values())
        needed = {p.name for p in parameters[1:] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD} - {"timestep", CLASS_INPUT}
        if needed:
            raise UsageError(
                f"{self.source.reference} needs {', '.join(sorted(needed))}: only models that take classes or nothing are compared here"
            )
        space = class_space(self.source.model, self.source.config)
        return space.count if space else 0

    def conditions(self, numbers: range) -> dict[str, torch.Tensor]:
        """Conditions [n] of the samples with these numbers."""
        return {CLASS_INPUT: torch.tensor([number % self.classes for number in numbers])} if self.classes else {}

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        """The float model's output."""
        output: Any = self.source.model(sample, timestep=timestep, **conditions)
        return output if isinstance(output, torch.Tensor) else output[0]


def load_reference(model: str, device: torch.device | str = "cpu") -> Reference:
    """Load a float model by built-in name or path. Raises as ``load_source`` does."""
    source = load_source(model)
    source.model.to(device)
    return Reference(source)
