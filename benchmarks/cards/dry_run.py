"""``python -m benchmarks.cards.dry_run MODEL``: what ``quantize --dry-run`` says of a network of its real configuration and random weights.

Memory and disk are recorded, which depend on shapes alone; times are not, since they are of the machine.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dq_deploy

RESULTS = Path(__file__).parent / "results"
OPTIONS: dict[str, Any] = {
    "preset": "w8a8", "iterations": 0, "dilation": "none", "steps": 20, "calibration_samples": 16, "batch_size": 1, "guidance_scale": 4.5,
}  # fmt: skip
"""Those of docs/large-models.md, with 16 prompts and guidance."""


@dataclass(frozen=True)
class Tried:
    """A network, the shape of one of its samples, and the conditions of one."""

    name: str
    make: Callable[[], Any]
    sample_shape: tuple[int, ...]
    conditions: Callable[[], dict[str, Any]]


def _sd15() -> Any:
    from .models import MODELS

    return MODELS[0].make()


def _pixart() -> Any:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(sample_size=64, caption_channels=4096, interpolation_scale=1, use_additional_conditions=False)


TRIED = (
    Tried("SD 1.5, 512²", _sd15, (4, 64, 64), lambda: {"encoder_hidden_states": torch.randn(16, 77, 768)}),
    Tried("PixArt-Σ, 512²", _pixart, (4, 64, 64), lambda: {"encoder_hidden_states": torch.randn(16, 300, 4096)}),
)


def measure(tried: Tried) -> dict[str, Any]:
    """Bytes of the weights in float32, of memory above them and of disk, and what the process itself held at the most."""
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    model, conditions = tried.make().eval(), tried.conditions()
    parameters = sum(p.numel() for p in model.parameters())
    null = {name: torch.zeros_like(value[:1]) for name, value in conditions.items()}
    given: dict[str, Any] = {
        "scheduler": DDIMScheduler(),
        "sample_shape": tried.sample_shape,
        "conditions": conditions,
        "null_conditions": null,
    }
    budget = dq_deploy.estimate(model, **given, **OPTIONS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "name": tried.name, "parameters": parameters, "macs": sum(block.macs for block in budget.blocks),
        "memory_bytes": budget.memory_bytes, "disk_bytes": budget.disk_bytes, "peak_of_the_dry_run_bytes": peak,
    }  # fmt: skip


def file_of(tried: Tried) -> Path:
    """Where its result stands."""
    return RESULTS / f"{tried.name.split(',')[0].lower().replace(' ', '-').replace('Σ'.lower(), 'sigma')}.json"


def main(wanted: str) -> None:
    """Measure the network whose name begins so."""
    (tried,) = (one for one in TRIED if one.name.startswith(wanted))
    RESULTS.mkdir(exist_ok=True)
    file_of(tried).write_text(json.dumps(measure(tried), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
