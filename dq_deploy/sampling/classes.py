"""What pictures of a class-conditional model are drawn of, and how strongly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..artifacts import Artifact
from ..engines.dropin import DropInModel
from ..errors import UsageError
from ..quantization.calibration.classes import CLASS_INPUT, class_space


@dataclass(frozen=True)
class Conditioning:
    """Classes to draw in turn, and classifier-free guidance towards them: away from the class ``null``."""

    labels: list[int]
    guidance_scale: float | None
    null: int | None

    def label(self, number: int) -> int:
        """The class of a picture, by its number."""
        return self.labels[number % len(self.labels)]

    def applied(self, model: DropInModel, numbers: range) -> DropInModel:
        """The model as a loop without classes calls it: the labels of these pictures given, and guided."""
        labels = torch.tensor([self.label(number) for number in numbers])
        null = None if self.null is None else torch.full_like(labels, self.null)

        def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            sample, timestep = inputs["sample"], inputs["timestep"]
            if null is None or self.guidance_scale is None:
                output: torch.Tensor = model(sample, timestep, class_labels=labels).sample
                return output
            halves = model(torch.cat([sample, sample]), timestep, class_labels=torch.cat([labels, null])).sample
            (conditional, unconditional), channels = halves.chunk(2), sample.shape[1]
            guided = unconditional[:, :channels] + self.guidance_scale * (conditional[:, :channels] - unconditional[:, :channels])
            return torch.cat([guided, conditional[:, channels:]], dim=1)  # some predict a variance too

        return DropInModel(forward, ("sample", "timestep"), model.config)


def conditioning_of(artifact: Artifact, classes: str | Sequence[int] | None, guidance_scale: float | None) -> Conditioning | None:
    """What to draw and how strongly, None for an unconditional model; without arguments all classes, guided as calibrated.

    Raises UsageError: classes of a model without them, unknown ones, an invalid guidance scale.
    """
    if CLASS_INPUT not in artifact.details.input_names:
        if classes is not None or guidance_scale is not None:
            what = "classes are" if classes is not None else "a guidance scale is"
            raise UsageError(f"{what} given, and the model takes no classes", "leave that out")
        return None
    space = class_space(None, artifact.details.network_config or {})
    if space is None:
        raise UsageError(f"{artifact.path} takes {CLASS_INPUT}, and its configuration does not say how many there are")
    scale = guidance_of(artifact, guidance_scale)
    guided = scale is not None and scale > 1  # as in diffusers
    null = int(space.null_conditions()[CLASS_INPUT][0]) if guided else None
    return Conditioning(space.choose(classes), scale, null)


def guidance_of(artifact: Artifact, guidance_scale: float | None) -> float | None:
    """The guidance scale asked for, or that of the calibration. Raises UsageError for an invalid number."""
    scale: float | None = (artifact.manifest.quantization or {}).get("guidance_scale") if guidance_scale is None else guidance_scale
    if scale is not None and not 0 <= scale < math.inf:
        raise UsageError(f"the guidance scale is {scale}, and must be a number of at least 0")
    return scale
