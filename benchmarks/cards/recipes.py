"""Steps and guidance to begin with, by model: what their authors sample with."""

from __future__ import annotations

from dataclasses import dataclass

from .models import MODELS, Model

_SD15, _SDXL, _SD35_MEDIUM, _SD35_LARGE, _FLUX = MODELS


@dataclass(frozen=True)
class Recipe:
    """Options for ``quantize``, and how often the network runs in a step for each sample. Without a ``model`` nothing is counted."""

    name: str
    options: str
    model: Model | None = None
    steps: int = 20
    halves: int = 1


RECIPES = (
    Recipe("Stable Diffusion 1.5, 512²", "`--steps 20 --guidance-scale 7.5`", _SD15, 20, 2),
    Recipe("SDXL, 1024²", "`--steps 30 --guidance-scale 5`", _SDXL, 30, 2),
    Recipe("SDXL-Turbo, Lightning, 1024²", "`--steps 4 --guidance-scale 0 --sampler pipeline`", _SDXL, 4),
    Recipe("LCM of SDXL, 1024²", "`--steps 4 --guidance-scale 1.5 --sampler pipeline`", _SDXL, 4),
    Recipe("SD3.5 medium, 1024²", "`--steps 28 --guidance-scale 4.5`", _SD35_MEDIUM, 28, 2),
    Recipe("SD3.5 large, 1024²", "`--steps 28 --guidance-scale 4.5`", _SD35_LARGE, 28, 2),
    Recipe("FLUX.1-dev, 1024²", "`--steps 28 --guidance-scale 3.5`", _FLUX, 28),
    Recipe("FLUX.1-schnell, 1024²", "`--steps 4 --guidance-scale 0`", _FLUX, 4),
    Recipe("PixArt, Sana, Wan, LTX, … ([families](families.md))", "the pipeline's own"),
)
