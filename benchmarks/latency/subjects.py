"""The models that are timed: the two that ship, and two of random weights in sizes that people have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Subject:
    """A model; ``channels`` None is a built-in one. ``pictures``: sampled through the pipeline too."""

    name: str
    source: str = ""
    channels: tuple[int, ...] = ()
    sample_shape: tuple[int, int, int] = (3, 32, 32)
    transformer: bool = False
    pictures: bool = False

    def module(self) -> torch.nn.Module:
        """The float model."""
        if self.source:
            from dq_deploy.sources import load_source

            loaded: torch.nn.Module = load_source(self.source).model
            return loaded.eval()
        from diffusers import UNet2DModel

        torch.manual_seed(0)
        model: Any = UNet2DModel(
            sample_size=self.sample_shape[1],
            in_channels=self.sample_shape[0],
            out_channels=self.sample_shape[0],
            block_out_channels=self.channels,
            layers_per_block=2,
            down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * (len(self.channels) - 1),
            up_block_types=("AttnUpBlock2D",) * (len(self.channels) - 1) + ("UpBlock2D",),
        )
        module: torch.nn.Module = model.eval()
        return module

    def quantize_arguments(self) -> tuple[Any, dict[str, Any]]:
        """What ``dq_deploy.quantize`` takes."""
        if self.source:
            return self.source, {}
        from diffusers import DDIMScheduler

        return self.module(), {"scheduler": DDIMScheduler(), "sample_shape": self.sample_shape}


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("unet", "builtin:fashion-mnist-unet", pictures=True),
        Subject("dit", "builtin:fashion-mnist-dit", transformer=True),
        Subject("unet-6m", channels=(64, 96, 128)),
        Subject("unet-86m", channels=(192, 352, 544), sample_shape=(4, 64, 64)),
    )
}
