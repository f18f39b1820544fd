"""The scheduler that an artefact was calibrated with, from its manifest: pictures are drawn on the schedule that the tables are for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers

from ..artifacts import Artifact
from ..errors import ArtifactError, UsageError
from ..quantization.calibration.choice import choose, ddim_scheduler
from ..quantization.calibration.schedules import from_plain
from ..quantization.choices import Sampler


def calibrated_scheduler(artifact: Artifact) -> Any:
    """The scheduler of the calibration trajectories, made anew.

    Raises ArtifactError for a manifest without one, and UsageError where it was not a scheduler of diffusers, or one that had been changed.
    """
    entry = artifact.manifest.scheduler
    if not entry or not artifact.manifest.timesteps:
        raise ArtifactError(f"{artifact.path}: the manifest has no scheduler or no calibrated timesteps, and sampling needs both")
    config, name = from_plain(entry["config"]), entry["class"]
    ran = (entry.get("calibrated_with") or {}).get("class")
    kind = getattr(diffusers, name, None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not known and ran != "DDIMScheduler":
        raise UsageError(
            f"{artifact.path} was calibrated with a {name}, and diffusers {diffusers.__version__} has no scheduler of that name",
            "draw in Python: dq_deploy.load(PATH) in your own loop",
        )
    if altered := entry.get("changed"):
        raise UsageError(
            f"{artifact.path} was calibrated with a {name} whose {', '.join(altered)} had been changed after it was made, and the manifest "
            "has what it was made with",
            "draw in Python: dq_deploy.load(PATH) in your own loop; or quantize with a scheduler that is made with these settings",
        )
    try:
        own = kind.from_config(config) if known else SimpleNamespace(config=config)  # type: ignore[union-attr]
        if ran is None:  # made before manifests said it
            sampler = Sampler((artifact.manifest.quantization or {}).get("sampler", Sampler.DDIM))
            return choose(own, sampler).scheduler
        return ddim_scheduler(own) if ran == "DDIMScheduler" else own
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ArtifactError(f"{artifact.path}: no {ran or name} can be made from the manifest's configuration: {error}") from error


def calibrated_steps(artifact: Artifact) -> int:
    """How many steps that scheduler took: a table has fewer rows where timesteps repeat, and more where there are some between."""
    steps: int = (artifact.manifest.quantization or {}).get("steps", len(artifact.manifest.timesteps))
    return steps
