"""``dq-deploy check`` of a schedule: every timestep by the member that runs it, against that member's own checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..artifacts import Artifact, is_kind
from ..artifacts.details import BundleDetails, ScheduleDetails
from ..artifacts.final_error import FinalError, combined
from ..artifacts.layer_bits import bits_label
from ..artifacts.lineage import origin_of
from ..artifacts.turns import Turn, members_at, turns
from ..engines.choice import Engine, make_runner, runner_on, runtime_name
from ..engines.engine_files import largest_batch
from ..engines.schedule import ScheduleRunner
from ..errors import ArtifactError, UsageError
from ..progress import Progress, silent
from ..quantization.calibration.trajectories import Trajectories
from ..quantization.checkpoint import Checkpoint
from .comparing import allowed_db, as_exported, computed_in, refuse_bf16
from .end_to_end import FLOAT_SNR_DB, TimestepParity, end_to_end, float_end_to_end
from .local import LayerParity, local_parity
from .regions import RegionParity, region_parity
from .sizes import SizeParity, expected_timesteps, no_size, sizes_within
from .table_rows import table_row_failures
from .verdict import CheckResult, EngineParity, failures_of

_AS_WRITTEN, _OPTIMIZED = "as written", "optimized"


@dataclass(frozen=True)
class _Part:
    """A member, what it runs, and its checkpoint; None for a float member."""

    index: int
    turn: Turn
    checkpoint: Checkpoint | None

    @property
    def folder(self) -> str:
        return self.turn.member.path.name

    @property
    def label(self) -> str:
        return f"{self.folder} ({bits_label(self.turn.member) or 'float'})"


@dataclass(frozen=True)
class _Size:
    """A size that all members take: the timesteps that must be compared, and by member the samples at those that it runs."""

    name: str
    calibrated: bool
    timesteps: list[float]
    samples: list[Trajectories]


def check_schedule(schedule: Artifact[ScheduleDetails], checkpoints: Sequence[Checkpoint], *, engines: Sequence[Engine] = (),
                   optimized: bool = True, min_snr: float | None = None, threads: int | None = None,
                   progress: Progress = silent) -> CheckResult:  # fmt: skip
    """As ``check``. What a float member runs is compared with the float model, and must be within what a float graph's rounding leaves.

    Raises UsageError (nothing quantized, a checkpoint that no member is from) and ArtifactError (a member whose checkpoint is not given).
    """
    parts = _parts(schedule, checkpoints)
    runners = _runners(schedule, engines, optimized=optimized, threads=threads)
    first, *others = _sizes(schedule, parts)
    layers, regions, failures = [], [], []
    for part in parts:
        member = part.turn.member
        if part.checkpoint and is_kind(member, BundleDetails):
            found = _local(member, part, first.samples[part.index], progress)
            layers += found
            regions += _regions(member, part, first.samples[part.index])
            failures += [] if found else [f"no layer of member {part.label} was compared"]
            failures += [f"member {part.label}, {line}" for line in table_row_failures(member, part.checkpoint)]
    rows = _end_to_end(parts, runners, first, min_snr, progress)
    sizes = [_at_size(parts, runners, size, min_snr, progress) for size in others]
    timesteps = rows.get(_AS_WRITTEN, [])
    for row, quick in zip(timesteps, rows.get(_OPTIMIZED, []), strict=False):
        row.snr_optimized_db = quick.snr_bundle_db
    judged = {name: found for name, found in rows.items() if name not in (_AS_WRITTEN, _OPTIMIZED)}
    steps = judged | ({"": timesteps} if _AS_WRITTEN in rows else {})
    members = [member.details for member in schedule.members]
    return CheckResult(
        bundle=str(schedule.path),
        target="+".join(dict.fromkeys(details.target for details in members)),
        dtype="+".join(dict.fromkeys(details.dtype for details in members)),
        layers=layers,
        timesteps=timesteps,
        engines=[EngineParity(engine=name, details=runners[name].details, timesteps=found) for name, found in judged.items()],
        regions=regions,
        size=first.name,
        sizes=sizes,
        failures=[
            *failures_of(layers, regions, steps, first.timesteps), *failures,
            *(f"{at.size}: {line}" for at in sizes for line in at.failures),
        ],
        final_error=_final_error(parts),
        clipped=_clipped(parts, schedule.manifest.timesteps),
    )  # fmt: skip


def _parts(schedule: Artifact[ScheduleDetails], checkpoints: Sequence[Checkpoint]) -> list[_Part]:
    """Each member with the checkpoint that it is from."""
    by_hash = {checkpoint.artifact.as_parent.manifest_sha256: checkpoint for checkpoint in checkpoints}
    found = turns(schedule)
    parts = [
        _Part(index, turn, None if turn.member.details.float else by_hash.get(origin_of(turn.member) or ""))
        for index, turn in enumerate(found)
    ]
    if all(turn.member.details.float for turn in found):
        raise UsageError(f"{schedule.path} has only float members: it has nothing quantized to check")
    given = ", ".join(str(checkpoint.artifact.path) for checkpoint in checkpoints) or "nothing that was given"
    if missing := [part.label for part in parts if part.checkpoint is None and not part.turn.member.details.float]:
        raise ArtifactError(
            f"member {', '.join(missing)} of {schedule.path} was not exported from {given}", "give --checkpoint for each quantized member"
        )
    used = [part.checkpoint for part in parts]
    if strangers := [str(checkpoint.artifact.path) for checkpoint in by_hash.values() if checkpoint not in used]:
        raise UsageError(f"no member of {schedule.path} is from {', '.join(strangers)}", "leave it out")
    return parts


def _runners(schedule: Artifact[ScheduleDetails], engines: Sequence[Engine], *, optimized: bool,
             threads: int | None) -> dict[str, ScheduleRunner]:  # fmt: skip
    """The graphs as they are written, where all members are bundles, and what else was asked for; of built engines what ``load`` takes."""
    found = {name: runner_on(schedule, name, threads=threads) for name in engines}
    if all(is_kind(member, BundleDetails) for member in schedule.members):
        for member in schedule.members:
            refuse_bf16(member)
        found[_AS_WRITTEN] = make_runner(schedule, runtime="onnxruntime", optimized=False)
        found |= {_OPTIMIZED: make_runner(schedule, runtime="onnxruntime")} if optimized else {}
    elif not found:
        found[runtime_name(schedule)] = make_runner(schedule, runtime="auto", **({} if threads is None else {"threads": threads}))
    return {name: runner for name, runner in found.items() if isinstance(runner, ScheduleRunner)}


def _sizes(schedule: Artifact[ScheduleDetails], parts: Sequence[_Part]) -> list[_Size]:
    """Those of the checkpoints that every member takes; one without a name where no size is free. Raises UsageError where there is none."""
    some = next(part.checkpoint for part in parts if part.checkpoint)
    within = [{name: (yes, data) for name, yes, data in sizes_within(part.turn.member, part.checkpoint or some)} for part in parts]
    names = [name for name in within[0] if all(name in own for own in within)]
    if not names:
        raise no_size(schedule, some)
    switches = schedule.details.switches
    return [
        _Size(
            name, within[0][name][0], expected_timesteps(some, name, within[0][name][1]),
            [_run_by(part.index, own[name][1], switches) for part, own in zip(parts, within, strict=True)],
        )
        for name in names
    ]  # fmt: skip


def _run_by(index: int, data: Trajectories, switches: Sequence[float]) -> Trajectories:
    """The samples at the timesteps that this member runs, which a scheduler may have others of at a further size."""
    timesteps = data.timesteps.tolist()
    return data.at([t for t, number in zip(timesteps, members_at(timesteps, switches), strict=True) if number == index])


def _local(member: Artifact[BundleDetails], part: _Part, samples: Trajectories, progress: Progress) -> list[LayerParity]:
    """Layers of a bundle, named as the member's, at the timesteps that it runs."""
    assert part.checkpoint is not None
    if not len(samples.timesteps):
        return []
    layers = local_parity(member, as_exported(part.checkpoint, member.details), samples, progress=progress)
    for layer in layers:
        layer.layer = f"{part.folder}/{layer.layer}"
    return layers


def _regions(member: Artifact[BundleDetails], part: _Part, samples: Trajectories) -> list[RegionParity]:
    """Float parts of a bundle, named as the member's."""
    assert part.checkpoint is not None
    regions = region_parity(member, as_exported(part.checkpoint, member.details), samples)
    for region in regions:
        region.value = f"{part.folder}/{region.value}"
    return regions


def _at_size(parts: Sequence[_Part], runners: dict[str, ScheduleRunner], size: _Size, min_snr: float | None,
             progress: Progress) -> SizeParity:  # fmt: skip
    """Both parity tests at a further size."""
    rows = _end_to_end(parts, runners, size, min_snr, progress)
    judged = {name: found for name, found in rows.items() if name not in (_AS_WRITTEN, _OPTIMIZED)}
    judged |= {"": rows[_AS_WRITTEN]} if _AS_WRITTEN in rows else {}
    bundles = [(part.turn.member, part) for part in parts if part.checkpoint]
    layers = [
        layer
        for member, part in bundles
        if is_kind(member, BundleDetails)
        for layer in _local(member, part, size.samples[part.index], progress)
    ]
    return SizeParity(
        size=size.name, calibrated=size.calibrated, timesteps=judged, layers=len(layers),
        failures=failures_of(layers, [], judged, size.timesteps),
    )  # fmt: skip


def _end_to_end(parts: Sequence[_Part], runners: dict[str, ScheduleRunner], size: _Size, min_snr: float | None,
                progress: Progress) -> dict[str, list[TimestepParity]]:  # fmt: skip
    """Every calibrated timestep, ascending, through the schedule's own runners."""
    some = next(part.checkpoint for part in parts if part.checkpoint)
    rows: dict[str, list[TimestepParity]] = {name: [] for name in runners}
    for part in parts:
        details, samples = part.turn.member.details, size.samples[part.index]
        if not len(samples.timesteps):  # at a further size its turn may be over before it begins
            continue
        running = {name: runner.members[part.index] for name, runner in runners.items()}
        largest = largest_batch(part.turn.member)
        if part.checkpoint is None:
            required = {name: FLOAT_SNR_DB[computed_in(member, details.dtype)] for name, member in running.items()}
            found = float_end_to_end(runners, some.details.inputs, samples, required, largest=largest, progress=progress)
        else:
            allowed = {name: allowed_db(member, details.dtype) for name, member in running.items()}
            exported = as_exported(part.checkpoint, details)
            found = end_to_end(runners, exported, samples, allowed, largest=largest, progress=progress)
        for name, compared in found.items():
            for row in compared:
                row.member = part.label
                row.min_snr_db = max((bound for bound in (row.min_snr_db, min_snr) if bound is not None), default=None)
            rows[name] += compared
    return {name: sorted(found, key=lambda row: row.timestep) for name, found in rows.items()}


def _final_error(parts: Sequence[_Part]) -> FinalError | None:
    """What the steps cost by the checkpoints of those that run them."""
    known = [(part.label, part.turn.timesteps, part.checkpoint.details.final_error) for part in parts if part.checkpoint]
    return combined([(label, timesteps, found) for label, timesteps, found in known if found])


def _clipped(parts: Sequence[_Part], timesteps: Sequence[float]) -> dict[str, list[float]]:
    return {
        f"{part.folder}/{name}": [share if t in part.turn.timesteps else 0.0 for share, t in zip(shares, timesteps, strict=True)]
        for part in parts
        if part.checkpoint
        for name, shares in (part.checkpoint.details.clipped or {}).items()
    }
