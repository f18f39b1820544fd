"""Images of artefacts alone and of schedules made of them, from the same seeds."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.details import CheckpointDetails
from dq_deploy.artifacts.final_error import StepCost
from dq_deploy.artifacts.turns import members_at
from dq_deploy.decibels import psnr_db
from dq_deploy.engines.schedules.combine import combine
from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from dq_deploy.sampling import Drawing, draw
from dq_deploy.sampling.grid import Images

FLOAT = "float"
OPTIONS: dict[str, dict[str, Any]] = {"unet": {"dilation": "none", "calibration_samples": 16}}
"""Of the quantization, by model, beside no training: the UNet's rules of dilation take long to try."""


class Figures(BaseModel):
    """PSNR in dB of each image against the float model's, and the SNR of the final sample that the steps' costs add up to.

    ``better``: steps of ``timesteps`` that the better member runs. ``costs`` of a preset alone: the final sample's SNR in dB with only one
    step quantized, by timestep.
    """

    name: str
    timesteps: list[float]
    better: int
    psnr_db: list[float]
    foretold_db: float | None
    costs: dict[str, float | None]


@dataclass(frozen=True)
class Turns:
    """Presets (or float) in the order of sampling, and the calibrated timesteps at which the next takes over."""

    members: tuple[str, ...]
    switches: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """In a line."""
        first, *others = self.members
        return "; ".join([first, *(f"{other} from {switch:g} on" for other, switch in zip(others, self.switches, strict=True))])


@dataclass(frozen=True)
class Study:
    """One model: its checkpoints and bundles in ``workspace`` (what is there is used), ``images`` drawn of each combination."""

    model: str
    workspace: Path
    images: int

    def checkpoint(self, preset: str) -> Artifact[CheckpointDetails]:
        """Nothing trained."""
        path = self.workspace / f"{self.model}-{preset}"
        if not path.exists():
            quantize(f"builtin:fashion-mnist-{self.model}", path, preset=preset, iterations=0, **OPTIONS.get(self.model, {}))
        return open_artifact(path, "checkpoint")

    def bundle(self, preset: str, like: str) -> Path:
        """In fp32 apart from the integers; float is that of the checkpoint ``like``."""
        path = self.workspace / (f"{self.model}-float" if preset == FLOAT else f"{self.model}-{preset}-qdq")
        if not path.exists() and preset == FLOAT:
            export(self.checkpoint(like), path, target="qdq", float=True)
        elif not path.exists():
            export(self.checkpoint(preset), path, target="qdq", dtype="fp32", weight_storage="int8")
        return path

    def measure(self, turns: Turns) -> Figures:
        """Draw with one bundle, or with a schedule."""
        like = next(member for member in turns.members if member != FLOAT)
        bundles = [self.bundle(member, like) for member in turns.members]
        with tempfile.TemporaryDirectory(dir=self.workspace) as folder:
            made = bundles[0] if len(bundles) == 1 else combine(bundles, Path(folder) / "schedule", switches=turns.switches).path
            drawn = draw(made, self._drawing(compare_float=False)).quantized
        timesteps = self.checkpoint(like).manifest.timesteps
        best = turns.members.index(FLOAT if FLOAT in turns.members else "w8a8") if turns.switches else None
        costs = {} if turns.switches else {f"{step.timesteps[0]:g}": step.only_db for step in self._costs(like)}
        return Figures(
            name=turns.name,
            timesteps=timesteps,
            better=int(np.sum(members_at(timesteps, turns.switches) == best)),
            psnr_db=psnr_db(self._expected, drawn).round(3).tolist(),
            foretold_db=self._foretold_db(turns),
            costs=costs,
        )

    def _costs(self, preset: str) -> list[StepCost]:
        """What each step costs the final sample, as measured when the checkpoint was made."""
        found = self.checkpoint(preset).details.final_error
        return found.steps if found else []

    def _foretold_db(self, turns: Turns) -> float | None:
        """The steps' costs alone, as if their errors added up."""
        powers = [
            10 ** (-step.only_db / 10)
            for index, preset in enumerate(turns.members)
            if preset != FLOAT
            for step in self._costs(preset)
            if step.only_db is not None and all(members_at(step.timesteps, turns.switches) == index)
        ]
        return round(float(-10 * np.log10(sum(powers))), 3) if powers else None

    @cached_property
    def _expected(self) -> Images:
        """The float model's own images."""
        drawn = draw(self.checkpoint("w8a8"), self._drawing(compare_float=True)).expected
        assert drawn is not None
        return drawn

    def _drawing(self, *, compare_float: bool) -> Drawing:
        return Drawing(n=self.images, seed=1, batch_size=16, compare_float=compare_float)


def combinations(timesteps: Sequence[float], lower: Sequence[str]) -> list[Turns]:
    """W8A8 and ``lower`` alone; W8A8 with one to five steps in float at either end; W8A8 in either half of ``lower``, and in a quarter."""
    below = [float(t) for t in sorted(timesteps)]
    found = [Turns(("w8a8",)), *(Turns((preset,)) for preset in lower)]
    for count in (1, 2, 3, 5):
        found.append(Turns(("w8a8", FLOAT), (below[count - 1],)))
        found.append(Turns((FLOAT, "w8a8"), (below[-count - 1],)))
    for preset in lower:
        for fraction in (0.25, 0.5, 0.75):
            switch = below[round(fraction * len(below)) - 1]
            found += [Turns((preset, "w8a8"), (switch,)), Turns(("w8a8", preset), (switch,))]
    return found
