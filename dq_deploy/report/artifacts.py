"""The artefacts that a report is about: one checkpoint, and what was made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artifacts import Artifact, of_kind, open_artifact
from ..artifacts.details import BundleDetails, CheckpointDetails, EngineDetails, RunnableDetails, ScheduleDetails
from ..artifacts.lineage import origin_of
from ..errors import ArtifactError, UsageError


@dataclass(frozen=True)
class ReportedArtifacts:
    """A checkpoint, bundles exported from it (``floats`` are the unquantized ones), and engines built from those, with unique names.

    ``schedules`` have a member that is from the checkpoint, and ``others`` are the checkpoints of their further members.
    """

    checkpoint: Artifact[CheckpointDetails]
    bundles: tuple[Artifact[BundleDetails], ...]
    floats: tuple[Artifact[BundleDetails], ...]
    engines: tuple[Artifact[EngineDetails], ...]
    schedules: tuple[Artifact[ScheduleDetails], ...] = ()
    others: tuple[Artifact[CheckpointDetails], ...] = ()

    def bundle_of(self, engine: Artifact) -> Artifact[BundleDetails]:
        """The bundle that an engine was built from."""
        sha256 = engine.manifest.parent.manifest_sha256 if engine.manifest.parent else ""
        return next(bundle for bundle in (*self.bundles, *self.floats) if bundle.as_parent.manifest_sha256 == sha256)

    def is_float(self, engine: Artifact) -> bool:
        """Whether an engine is of an unquantized bundle."""
        return self.bundle_of(engine) in self.floats

    @property
    def members(self) -> list[Artifact]:
        """All of them, parents first."""
        return [self.checkpoint, *self.others, *self.bundles, *self.floats, *self.engines, *self.schedules]

    @property
    def runnable(self) -> list[Artifact[RunnableDetails]]:
        """What can be timed, the baselines first."""
        return [*self.floats, *self.bundles, *self.engines, *self.schedules]

    def checkpoints_of(self, schedule: Artifact[ScheduleDetails]) -> list[Artifact[CheckpointDetails]]:
        """Those that the quantized members of a schedule are from."""
        origins = {origin_of(member) for member in schedule.members}
        return [checkpoint for checkpoint in (self.checkpoint, *self.others) if checkpoint.as_parent.manifest_sha256 in origins]


def gather(paths: Sequence[str | Path], checkpoint: str | Path | None = None) -> ReportedArtifacts:
    """Open and verify artefacts, and sort them by what they are.

    Of several checkpoints the report is about the first; the others are those of a schedule's further members.

    Raises UsageError (no checkpoint or two, one given twice, two of one name) and ArtifactError (a damaged one, or one that was made from
    something else).
    """
    given = [*([Path(checkpoint)] if checkpoint is not None else []), *map(Path, paths)]
    opened = [open_artifact(path, ("checkpoint", "bundle", "engine", "schedule")) for path in given]
    _check_names(opened)
    checkpoints, schedules = of_kind(opened, CheckpointDetails), of_kind(opened, ScheduleDetails)
    scheduled = {origin_of(member) for schedule in schedules for member in schedule.members}
    needless = [one for one in checkpoints[1:] if one.as_parent.manifest_sha256 not in scheduled]
    if not checkpoints or needless:
        found = ", ".join(str(artifact.path) for artifact in checkpoints)
        raise UsageError(
            f"a report is about one checkpoint, and {f'these were given: {found}' if found else 'none was given'}",
            "give the checkpoint among the paths, or with --checkpoint",
        )
    bundles, engines = of_kind(opened, BundleDetails), of_kind(opened, EngineDetails)
    _check_parents(bundles, checkpoints[:1], "exported from", "the checkpoint that it is from")
    _check_parents(engines, bundles, "built from", "the bundle that it is from")
    _check_schedules(schedules, checkpoints)
    return ReportedArtifacts(
        checkpoints[0],
        tuple(bundle for bundle in bundles if not bundle.details.float),
        tuple(bundle for bundle in bundles if bundle.details.float),
        tuple(engines),
        tuple(schedules),
        tuple(checkpoints[1:]),
    )


def _check_schedules(schedules: Sequence[Artifact[ScheduleDetails]], checkpoints: Sequence[Artifact]) -> None:
    """Every quantized member's checkpoint must be there, and the report's own must be one of them."""
    known = [checkpoint.as_parent.manifest_sha256 for checkpoint in checkpoints]
    for schedule in schedules:
        origins = {member.path: origin_of(member) for member in schedule.members if not member.details.float}
        strangers = [str(path) for path, origin in origins.items() if origin not in known]
        if strangers or known[0] not in origins.values():
            what = ", ".join(strangers) or str(schedule.path)
            given = " or ".join(str(checkpoint.path) for checkpoint in (checkpoints if strangers else checkpoints[:1]))
            raise ArtifactError(
                f"{what}: not exported from {given}", "give the checkpoint of each quantized member; the report is about the first"
            )


def _check_names(opened: Sequence[Artifact]) -> None:
    """On the page an artefact goes by its folder's name."""
    names = [artifact.path.resolve().name for artifact in opened]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        paths = ", ".join(str(a.path) for a in opened if a.path.resolve().name in twice)
        raise UsageError(f"two of the artefacts are called {twice[0]}: {paths}", "give each once, in folders of different names")


def _check_parents(children: Sequence[Artifact], parents: Sequence[Artifact], how: str, what: str) -> None:
    known = {parent.as_parent.manifest_sha256 for parent in parents}
    strangers = [child for child in children if child.manifest.parent is None or child.manifest.parent.manifest_sha256 not in known]
    if strangers:
        paths = ", ".join(str(child.path) for child in strangers)
        given = " or ".join(str(parent.path) for parent in parents) or "anything given"
        raise ArtifactError(f"{paths}: not {how} {given}", f"give {what} too, or make it again")
