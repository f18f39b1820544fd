"""What is the same for every method: data, budget, samples. And what a cell is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Tier = Literal["grid", "rival", "headline"]
TIERS: tuple[Tier, ...] = ("grid", "rival", "headline")
Family = Literal["unet", "transformer"]
DrawnBy = Literal["torch", "openvino"]
"""What runs a quantized model for the pictures of rivals and headlines: the simulation, or INT8 kernels on the exported graph."""
FLOAT = "float"
"""The float model stands in the table as a method, and in the results as a preset, of this name."""


class Settings(BaseModel):
    """The budget, in plain words: every method sees the same trajectories (``calibration_samples`` seeds, ``steps`` timesteps each), and
    every weight that a method trains takes ``iterations`` optimizer steps of ``batch_size`` samples. Blocks one after the other or the
    network at once, that is the same number of forward and backward passes through each layer. End-to-end distillation gets
    ``end_to_end_factor`` times the steps, because block distillation also spends time on its caches: its wall time is then the larger
    one. Wall times and peak memory stand in the table.
    """  # noqa: D205  a definition, not a summary

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=20, ge=1)
    calibration_samples: int = Field(default=64, ge=2)
    iterations: int = Field(default=60, ge=0)
    batch_size: int = Field(default=32, ge=1)
    end_to_end_factor: float = Field(default=1.5, gt=0)
    max_float_share: float = Field(default=0.02, ge=0, le=1)
    grid_samples: int = Field(default=256, ge=2)
    snr_samples: int = Field(default=16, ge=2)
    rival_samples: int = Field(default=2000, ge=2)
    headline_samples: int = Field(default=5000, ge=2)
    frechet_replicates: int = Field(default=200, ge=2)
    inception_replicates: int = Field(default=50, ge=2)

    def samples(self, tier: Tier) -> int:
        """Pictures that a tier looks at; the same noises come first in each."""
        return {"grid": self.grid_samples, "rival": self.rival_samples, "headline": self.headline_samples}[tier]


class Cell(BaseModel):
    """One model, one preset, one method, one seed of the calibration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    preset: str
    method: str
    seed: int = 0

    @property
    def label(self) -> str:
        """For progress and errors."""
        return f"{model_name(self.model)} {self.preset} {self.method}" + (f" seed {self.seed}" if self.seed else "")

    def result_file(self, results: Path) -> Path:
        """Where its figures are committed."""
        suffix = f".seed{self.seed}" if self.seed else ""
        return results / model_name(self.model) / self.preset / f"{self.method}{suffix}.json"


FUNCTION = re.compile(r"(?P<place>[^:]+\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")
"""A source that is made by a function: ``file.py:name`` or ``module:name``."""


def model_name(reference: str) -> str:
    """Folder name of a model: a built-in's name, the last part of a path or hub id, or what a function or its file is called."""
    if reference.startswith("builtin:"):
        return reference.removeprefix("builtin:")
    if match := FUNCTION.fullmatch(reference):
        place = match["place"]
        stem = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
        return stem if match["name"] == "make" else match["name"]
    return Path(reference).resolve().name


def default_work() -> Path:
    """Where checkpoints and pictures lie: the user's cache, outside the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dq-deploy" / "accuracy"
