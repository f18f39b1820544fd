"""Two or three bundles or engines of one model → a schedule: each runs its own part of the timesteps.

A schedule's folder has a folder for each member, ``1`` for the one above the first switch, with everything that was in the member's own,
its manifest too: a copy, since files that two artefacts share would change in both. Each is a whole artefact, and goes wherever one goes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...artifacts import Artifact, Manifest, check_output, create_artifact, open_artifact
from ...artifacts.details import GraphDetails, ScheduleDetails, switches_problem
from ...artifacts.manifest import MANIFEST_NAME
from ...artifacts.turns import members_at
from ...errors import ArtifactError, UsageError
from ..loading.engine_files import open_graph
from ..loading.size_range import SizeRange
from ..running.runner import TIMESTEP

_CARRIED = ("component", "pipeline_class", "model_config", "sample_shape", "picture_size", "pictures", "call", "source", "inputs",
            "free", "calibrated_sizes")  # fmt: skip
_HASH_LENGTH = 64
_SAMPLING = ("steps", "sampler", "guidance_scale")
"""Options of a quantization that say how its model is sampled."""


def combine(members: Sequence[str | Path | Artifact[GraphDetails]], output: str | Path, *, switches: Sequence[float],
            force: bool = False) -> Artifact[ScheduleDetails]:  # fmt: skip
    """Make one artefact of two or three bundles or engines of one model, which take turns over the timesteps of sampling.

    The first runs every timestep above the first of ``switches``, the next those from that switch down to the next one, and the last what
    is left: a timestep that equals a switch belongs to the member below it. Members may be quantized or float (``export(float=True)``).

    Raises UsageError (numbers of members and switches that do not fit, a member without a timestep, one given twice, an existing output)
    and ArtifactError (neither bundle nor engine, a damaged one, members of different models).
    """
    if problem := switches_problem(switches, len(members)):
        raise UsageError(problem, "a schedule has two members and one switch, or three and two, the highest timestep first")
    opened = [open_graph(member) for member in members]
    check_alike(opened)
    _check_turns(opened, switches)
    for member in opened:
        check_output(Path(output), force=force, source=member.path)
    first = opened[0].manifest
    manifest = Manifest(
        kind="schedule",
        model=first.model,
        quantization=_common_options(opened),
        scheduler=first.scheduler,
        timesteps=first.timesteps,
        details={
            **{name: first.details[name] for name in _CARRIED if name in first.details},
            "members": [
                {"folder": str(number), "name": member.path.resolve().name, "manifest_sha256": member.as_parent.manifest_sha256}
                for number, member in enumerate(opened, 1)
            ],
            "switches": [float(switch) for switch in switches],
        },
    )
    with create_artifact(output, manifest, force=force) as folder:
        for entry, member in zip(manifest.details["members"], opened, strict=True):
            for name in (MANIFEST_NAME, *member.manifest.files):
                copied = folder / entry["folder"] / name
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(member.path / name, copied)
    return open_artifact(output, "schedule")


def check_alike(members: Sequence[Artifact[GraphDetails]]) -> None:
    """Raise ArtifactError unless they are of one model and calibrated alike, naming all that differs from the first that says it."""
    models = [_model_of(member) for member in members]
    said = {what: next((found[what] for found in models if found[what] is not None), None) for what in models[0]}
    problems = [
        f"{member.path}: {what} {_short(found[what]) or 'none'}, not {_short(said[what]) or 'none'}"
        for member, found in zip(members, models, strict=True)
        for what in said
        if found[what] is not None and found[what] != said[what]
    ]
    problems += [f"{member.path} does not say what model it came from" for member in members if member.details.source is None]
    if problems:
        raise ArtifactError(
            f"these do not take turns with {members[0].path}: {'; '.join(problems)}",
            "combine what came from one model, quantized for the same timesteps",
        )


def _model_of(member: Artifact[GraphDetails]) -> dict[str, Any]:
    """What members of one schedule have in common, by what it is called; None: a member that says nothing of it."""
    details, manifest = member.details, member.manifest
    source = details.source
    lora, pictures = (source.lora, source.ip_adapter) if source else (None, None)
    return {
        "source sha256": source.sha256 if source else None,
        "LoRA": (lora.sha256, lora.scale) if lora else (),
        "IP-Adapter": (pictures.sha256, pictures.scale) if pictures else (),
        "inputs": {entry.name: _shape(entry.name, entry.shape) for entry in details.inputs},
        "sample shape": details.sample_shape,
        "sizes": ", ".join(str(size) for size in details.calibrated_sizes if size.calibrated),
        "range": ", ".join(f"{name} {least} to {largest}" for name, (least, largest) in SizeRange.of(member).limits.items()),
        "timesteps": manifest.timesteps,
        "scheduler sha256": (manifest.scheduler or {}).get("sha256"),
        **{name.replace("_", " "): (manifest.quantization or {}).get(name) for name in _SAMPLING},
    }


def _shape(name: str, shape: Sequence[int | str]) -> tuple[int | str, ...]:
    """Without the batch; whether a graph takes one timestep or one for each sample is its own affair."""
    return () if name == TIMESTEP else tuple(shape[1:])


def _short(value: object) -> str:
    text = str(value)
    if len(text) == _HASH_LENGTH and text.isalnum():
        return f"{text[:12]}…"
    return text if len(text) <= 60 else f"{text[:57]}…"


def _check_turns(members: Sequence[Artifact[GraphDetails]], switches: Sequence[float]) -> None:
    """Raise UsageError for a member that would never run, and for one that is given twice."""
    hashes = [member.as_parent.manifest_sha256 for member in members]
    twice = [str(member.path) for member, found in zip(members, hashes, strict=True) if hashes.count(found) > 1]
    if twice:
        raise UsageError(f"the same artefact is given twice: {', '.join(twice)}")
    timesteps = members[0].manifest.timesteps
    runs = set(members_at(timesteps, switches).tolist())
    idle = [str(member.path) for index, member in enumerate(members) if index not in runs]
    if idle:
        span = f"from {max(timesteps):g} to {min(timesteps):g}" if timesteps else "none"
        shown = ", ".join(f"{switch:g}" for switch in switches)
        raise UsageError(f"with switches at {shown}, {', '.join(idle)} would run no calibrated timestep", f"they are {span}")


def _common_options(members: Sequence[Artifact[GraphDetails]]) -> Mapping[str, Any] | None:
    """The options of quantization that all quantized members have alike; None where none is quantized."""
    options = [member.manifest.quantization for member in members if member.manifest.quantization]
    if not options:
        return None
    return {name: value for name, value in options[0].items() if all(name in other and other[name] == value for other in options)}
