"""What a check compares with which checkpoint: the graph of a bundle or an engine, or each member of a schedule at its own timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..artifacts import Artifact, is_kind
from ..artifacts.details import GraphDetails, RunnableDetails, ScheduleDetails
from ..artifacts.final_error import FinalError, combined
from ..artifacts.layer_bits import bits_label
from ..artifacts.lineage import origin_of
from ..artifacts.turns import members_at, turns
from ..engines.running.runner import GraphRunner
from ..engines.running.schedule import ScheduleRunner
from ..errors import ArtifactError, UsageError
from ..quantization.calibration.trajectories import Trajectories
from ..quantization.checkpoint import Checkpoint
from .comparing import as_exported
from .sizes import expected_timesteps, no_size, sizes_within


@dataclass(frozen=True)
class Part:
    """A graph, the calibrated timesteps that it runs, and its checkpoint; None for a float member of a schedule.

    ``number`` is its place among a schedule's members, None for a graph on its own.
    """

    graph: Artifact[GraphDetails]
    checkpoint: Checkpoint | None
    timesteps: Sequence[float]
    number: int | None = None

    @cached_property
    def exported(self) -> Checkpoint | None:
        """The checkpoint's forward as the graph has it."""
        return self.checkpoint and as_exported(self.checkpoint, self.graph.details)

    @property
    def prefix(self) -> str:
        """What names of layers begin with: a member's folder."""
        return "" if self.number is None else f"{self.graph.path.name}/"

    @property
    def label(self) -> str | None:
        """A member's folder and bits."""
        return None if self.number is None else f"{self.graph.path.name} ({bits_label(self.graph) or 'float'})"

    def runner(self, whole: GraphRunner) -> GraphRunner:
        """Its own runner, of that of the whole artefact."""
        return whole if self.number is None or not isinstance(whole, ScheduleRunner) else whole.members[self.number]


@dataclass(frozen=True)
class Size:
    """A size that all parts take: the timesteps that must be compared, and by part the samples at those that it runs."""

    name: str
    calibrated: bool
    timesteps: list[float]
    samples: list[Trajectories]


def parts_of(artifact: Artifact[RunnableDetails], checkpoints: Sequence[Checkpoint]) -> list[Part]:
    """What is compared, each with the checkpoint that it is from.

    Raises UsageError (nothing quantized, a checkpoint too many) and ArtifactError (one that is missing, or another than the graph's).
    """
    if is_kind(artifact, ScheduleDetails):
        return _members(artifact, checkpoints)
    if len(checkpoints) != 1:
        names = ", ".join(str(one.artifact.path) for one in checkpoints) or "none"
        raise UsageError(
            f"a {artifact.manifest.kind} is checked against one checkpoint, and given: {names}", "only a schedule takes several"
        )
    assert is_kind(artifact, GraphDetails)
    if artifact.details.float:
        raise UsageError(f"this {artifact.manifest.kind} is the float baseline: it has nothing quantized to check")
    (checkpoint,) = checkpoints
    if origin_of(artifact) != checkpoint.artifact.as_parent.manifest_sha256:
        raise ArtifactError(
            f"{artifact.path} was not exported from {checkpoint.artifact.path}", "export it again, or name the right checkpoint"
        )
    return [Part(artifact, checkpoint, artifact.manifest.timesteps)]


def _members(schedule: Artifact[ScheduleDetails], checkpoints: Sequence[Checkpoint]) -> list[Part]:
    by_hash = {checkpoint.artifact.as_parent.manifest_sha256: checkpoint for checkpoint in checkpoints}
    found = turns(schedule)
    parts = [
        Part(turn.member, None if turn.member.details.float else by_hash.get(origin_of(turn.member) or ""), turn.timesteps, number)
        for number, turn in enumerate(found)
    ]
    if all(turn.member.details.float for turn in found):
        raise UsageError(f"{schedule.path} has only float members: it has nothing quantized to check")
    given = ", ".join(str(checkpoint.artifact.path) for checkpoint in checkpoints) or "nothing that was given"
    if missing := [str(part.label) for part in parts if part.checkpoint is None and not part.graph.details.float]:
        raise ArtifactError(
            f"member {', '.join(missing)} of {schedule.path} was not exported from {given}", "give --checkpoint for each quantized member"
        )
    used = [part.checkpoint for part in parts]
    if strangers := [str(checkpoint.artifact.path) for checkpoint in by_hash.values() if checkpoint not in used]:
        raise UsageError(f"no member of {schedule.path} is from {', '.join(strangers)}", "leave it out")
    return parts


def some_checkpoint(parts: Sequence[Part]) -> Checkpoint:
    """One of the checkpoints, which say alike what the network is called with."""
    return next(part.checkpoint for part in parts if part.checkpoint)


def sizes_of(artifact: Artifact[RunnableDetails], parts: Sequence[Part]) -> list[Size]:
    """Those of the checkpoints that every part takes; one without a name where no size is free. Raises UsageError where there is none."""
    some = some_checkpoint(parts)
    within = [{name: (yes, data) for name, yes, data in sizes_within(part.graph, part.checkpoint or some)} for part in parts]
    names = [name for name in within[0] if all(name in own for own in within)]
    if not names:
        raise no_size(artifact, some)
    switches = artifact.details.switches if is_kind(artifact, ScheduleDetails) else []
    return [
        Size(
            name, within[0][name][0], expected_timesteps(some, name, within[0][name][1]),
            [_run_by(part, own[name][1], switches) for part, own in zip(parts, within, strict=True)],
        )
        for name in names
    ]  # fmt: skip


def _run_by(part: Part, data: Trajectories, switches: Sequence[float]) -> Trajectories:
    """The samples at the timesteps that a part runs, which a scheduler may have others of at a further size."""
    if part.number is None:
        return data
    timesteps = data.timesteps.tolist()
    return data.at([t for t, number in zip(timesteps, members_at(timesteps, switches), strict=True) if number == part.number])


def final_error_of(parts: Sequence[Part]) -> FinalError | None:
    """What the steps cost by the checkpoints of those that run them."""
    if parts[0].number is None:
        return parts[0].exported.details.final_error if parts[0].exported else None
    known = [(str(part.label), part.timesteps, part.checkpoint.details.final_error) for part in parts if part.checkpoint]
    return combined([(label, timesteps, found) for label, timesteps, found in known if found])


def clipped_by(parts: Sequence[Part], timesteps: Sequence[float]) -> dict[str, list[float]]:
    """By quantizer what is clipped at each of the ``timesteps``, 0 where another part runs it."""
    if parts[0].number is None:
        return (parts[0].exported.details.clipped if parts[0].exported else None) or {}
    return {
        f"{part.prefix}{name}": [share if t in part.timesteps else 0.0 for share, t in zip(shares, timesteps, strict=True)]
        for part in parts
        if part.checkpoint
        for name, shares in (part.checkpoint.details.clipped or {}).items()
    }
