"""The models that are timed: the two that ship, and two of random weights in sizes that people have."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

WORK = Path(tempfile.gettempdir()) / "dq-deploy-benchmark-latency"
"""Where artefacts are made if nothing else is said."""


@dataclass(frozen=True)
class Subject:
    """A model: a built-in one, or a UNet of these ``channels`` with random weights. ``pictures``: sampled through the pipeline too."""

    name: str
    builtin: str = ""
    channels: tuple[int, ...] = ()
    sample_shape: tuple[int, int, int] = (3, 32, 32)
    transformer: bool = False
    pictures: bool = False

    def source(self, folder: Path) -> str:
        """What ``dq_deploy.quantize`` and ``load_source`` take: a built-in's name, or a pipeline below ``folder``, written if need be."""
        path = folder / "pipeline"
        if not self.builtin and not path.exists():
            from diffusers import DDIMPipeline, DDIMScheduler

            pipeline: Any = DDIMPipeline(unet=self._random(), scheduler=DDIMScheduler())
            pipeline.save_pretrained(path)
        return self.builtin or str(path)

    def module(self, folder: Path) -> torch.nn.Module:
        """The float model."""
        from dq_deploy.sources import load_source

        loaded: torch.nn.Module = load_source(self.source(folder)).model
        return loaded.eval()

    def _random(self) -> Any:
        from diffusers import UNet2DModel

        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=self.sample_shape[1],
            in_channels=self.sample_shape[0],
            out_channels=self.sample_shape[0],
            block_out_channels=self.channels,
            layers_per_block=2,
            down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * (len(self.channels) - 1),
            up_block_types=("AttnUpBlock2D",) * (len(self.channels) - 1) + ("UpBlock2D",),
        )


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("unet", "builtin:fashion-mnist-unet", pictures=True),
        Subject("dit", "builtin:fashion-mnist-dit", transformer=True),
        Subject("unet-6m", channels=(64, 96, 128)),
        Subject("unet-86m", channels=(192, 352, 544), sample_shape=(4, 64, 64)),
    )
}
