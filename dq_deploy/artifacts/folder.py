"""Writing and reading artefact folders: complete or invisible, verified before use."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeGuard, overload

from typing_extensions import TypeVar

from ..errors import ArtifactError, UsageError
from .details import (
    BundleDetails,
    CheckpointDetails,
    Details,
    EngineDetails,
    GraphDetails,
    MemberEntry,
    PipelineFolderDetails,
    RepositoryDetails,
    RunnableDetails,
    ScheduleDetails,
    parse_details,
)
from .manifest import MANIFEST_NAME, FileEntry, Kind, Manifest, Parent, parse_manifest, sha256_file, tool_versions
from .origin import place_relative
from .reading import check_safetensors, refuse_stand_in
from .reading.paths import REMAKE, file_problem, name_problem, shown
from .writing import held, put_in_place, remove_abandoned, set_mode, sync, write_text

D_co = TypeVar("D_co", bound=Details | RepositoryDetails | PipelineFolderDetails, covariant=True, default=Details)


@dataclass(frozen=True)
class Artifact(Generic[D_co]):
    """A folder whose manifest has been read and whose files have been verified. ``D_co`` is the class of its ``details``."""

    path: Path
    manifest: Manifest

    @cached_property
    def details(self) -> D_co:
        """What only this kind of artefact has, parsed once. Raises ArtifactError when the manifest does not say what it must."""
        found: D_co = parse_details(self.path, self.manifest)
        return found

    @cached_property
    def members(self) -> list[Artifact[GraphDetails]]:
        """The bundles and engines of a schedule, first the one above the first switch; none of another kind.

        Raises ArtifactError when one is not what the schedule says.
        """
        details = self.details
        return [_member(self, entry) for entry in details.members] if isinstance(details, ScheduleDetails) else []

    def __repr__(self) -> str:
        """One line, where a manifest has pages."""
        return f"<{self.manifest.kind} of {self.manifest.model!r} in {str(self.path)!r}>"

    @property
    def as_parent(self) -> Parent:
        """This artefact as the ``parent`` entry of one made from it."""
        return Parent(kind=self.manifest.kind, manifest_sha256=sha256_file(self.path / MANIFEST_NAME))

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists.

        Raises ArtifactError when the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.path}: the manifest lists no file '{name}'")
        return self.path / name


def _member(schedule: Artifact[Any], entry: MemberEntry) -> Artifact[GraphDetails]:
    """A member of a schedule whose files have been verified: they are the schedule's own, so they are not read again."""
    manifest_file = schedule.file(f"{entry.folder}/{MANIFEST_NAME}")
    manifest = parse_manifest(manifest_file)
    listed = {f"{entry.folder}/{name}": found for name, found in manifest.files.items()}
    problems = [f"'{name}' is not the member's" for name, found in listed.items() if schedule.manifest.files.get(name) != found]
    problems += [] if manifest.kind in ("bundle", "engine") else [f"{entry.folder} is a {manifest.kind}"]
    problems += [] if schedule.manifest.files[f"{entry.folder}/{MANIFEST_NAME}"].sha256 == entry.manifest_sha256 else [
        f"{entry.folder} is another artefact than was combined"
    ]  # fmt: skip
    if problems:
        raise ArtifactError(f"{schedule.path} is not a schedule of this dq-deploy: {'; '.join(problems)}", REMAKE)
    return Artifact(schedule.path / entry.folder, manifest)


def is_kind(artifact: Artifact[Any], details: type[D_co]) -> TypeGuard[Artifact[D_co]]:
    """Whether the details are of this class, which says what kind the artefact is."""
    return isinstance(artifact.details, details)


def of_kind(artifacts: Iterable[Artifact[Any]], details: type[D_co]) -> list[Artifact[D_co]]:
    """Those whose details are of this class."""
    return [artifact for artifact in artifacts if is_kind(artifact, details)]


def check_output(path: Path, *, force: bool = False, source: Path | None = None) -> None:
    """Refuse an output path that cannot be written to, before any long step.

    Raises UsageError when the path exists and ``force`` is off, or when it exists and carries no manifest of ours; when it is the artefact
    ``source`` that the output is made from, or a folder around it; and for a path that is not text in this system's encoding.
    """
    _check_text(path)
    if source is not None and path.exists() and path.resolve() in (source.resolve(), *source.resolve().parents):
        raise UsageError(f"output {path} is what it would be made from, {source}, or holds it", "choose another output")
    if not path.exists() and not path.is_symlink():
        parent = next(p for p in path.absolute().parents if os.path.lexists(p))  # a link that leads nowhere is not a folder either
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UsageError(f"cannot create {path}: {parent} is not a writable folder")
        return
    if not force:
        raise UsageError(f"output {path} already exists", "choose another output, or pass --force to replace an artefact of ours")
    if not (path / MANIFEST_NAME).is_file():
        raise UsageError(
            f"output {path} exists and is not an artefact of dq-deploy (it has no {MANIFEST_NAME}), so --force will not delete it"
        )
    read_manifest(path)


def _check_text(path: Path) -> None:
    """Refuse a path of other bytes: the libraries that read and write graphs and tensors take none."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        hint = "give another path; if this one is UTF-8, set PYTHONUTF8=1"
        raise UsageError(f"the path {str(path)!a} is not text in this system's encoding", hint) from None


def read_manifest(path: Path) -> Manifest:
    """Read and validate ``manifest.json`` of an artefact folder, without looking at its files.

    Raises UsageError when there is no such folder and ArtifactError when its manifest is missing, invalid or of a newer schema.
    """
    if not path.exists():
        raise UsageError(f"no such path: {path}")
    source = path / MANIFEST_NAME
    if not path.is_dir() or not (source.exists() or source.is_symlink()):
        raise ArtifactError(f"{path} is not a dq-deploy artefact: it has no {MANIFEST_NAME}")
    if problem := file_problem(path, MANIFEST_NAME):
        raise ArtifactError(f"{path} is not a dq-deploy artefact: its {MANIFEST_NAME} {problem}", REMAKE)
    return parse_manifest(source)


@overload
def open_artifact(path: str | Path, kind: Literal["checkpoint"]) -> Artifact[CheckpointDetails]: ...
@overload
def open_artifact(path: str | Path, kind: Literal["bundle"]) -> Artifact[BundleDetails]: ...
@overload
def open_artifact(path: str | Path, kind: Literal["engine"]) -> Artifact[EngineDetails]: ...
@overload
def open_artifact(path: str | Path, kind: Literal["triton-repository"]) -> Artifact[RepositoryDetails]: ...
@overload
def open_artifact(path: str | Path, kind: Literal["pipeline-folder"]) -> Artifact[PipelineFolderDetails]: ...
@overload
def open_artifact(path: str | Path, kind: Literal["schedule"]) -> Artifact[ScheduleDetails]: ...
@overload
def open_artifact(path: str | Path, kind: tuple[Literal["bundle"], Literal["engine"]]) -> Artifact[GraphDetails]: ...
@overload
def open_artifact(
    path: str | Path, kind: tuple[Literal["bundle"], Literal["engine"], Literal["schedule"]]
) -> Artifact[RunnableDetails]: ...
@overload
def open_artifact(path: str | Path, kind: tuple[Kind, ...]) -> Artifact[Details]: ...
def open_artifact(path: str | Path, kind: Kind | tuple[Kind, ...]) -> Artifact[Any]:
    """Open an artefact of one of the given kinds and verify size and sha256 of every file it lists, and what its manifest says of it.

    Files that are not listed are never read. Raises UsageError (no such path) or ArtifactError (another kind, a missing, changed or
    escaping file, a manifest without the ``details`` of its kind, tensors that do not fit their header).
    """
    path = Path(path)
    _check_text(path)
    manifest = read_manifest(path)
    kinds = (kind,) if isinstance(kind, str) else kind
    if manifest.kind not in kinds:
        *others, last = (f"{'an' if kind == 'engine' else 'a'} {kind}" for kind in kinds)
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise ArtifactError(
            f"{path} is {'an' if manifest.kind == 'engine' else 'a'} {manifest.kind}, and {wanted} is needed here",
            _instead(path, manifest.kind, kinds),
        )
    problems = [problem for name, entry in manifest.files.items() if (problem := _verify(path, name, entry))]
    if problems:
        raise ArtifactError(f"{path} does not match its manifest: " + "; ".join(problems), REMAKE)
    artifact: Artifact[Any] = Artifact(path, manifest)
    artifact.details  # noqa: B018  parsed here, so that a bad one is refused at the door
    for member in artifact.members:
        member.details  # noqa: B018  likewise
    for name in manifest.files:
        if name.endswith(".safetensors"):
            check_safetensors(path / name)
    return artifact


_MADE = {
    "checkpoint": {"bundle": "dq-deploy export {} -o BUNDLE --target qdq"},
    "bundle": {"engine": "dq-deploy build-engine {} -o ENGINE --backend BACKEND (--help lists the backends)"},
}
"""From a kind of artefact to others, the command that makes one of it."""


def _instead(path: Path, kind: Kind, kinds: tuple[Kind, ...]) -> str | None:
    """How to come by one of ``kinds`` from an artefact of another kind."""
    if kind == "schedule" and {"bundle", "engine"} & set(kinds):
        return f"give one of its members, such as {path / '1'}"
    made = [command.format(path) for wanted, command in _MADE.get(kind, {}).items() if wanted in kinds]
    return f"make one from it: {made[0]}" if made else None


def _verify(root: Path, name: str, entry: FileEntry) -> str | None:
    if problem := name_problem(name) or file_problem(root, name):
        return f"{shown(name)} {problem}"
    path = root / name
    if path.stat().st_size != entry.size:
        refuse_stand_in(path)
        return f"'{name}' has {path.stat().st_size} bytes, not {entry.size}"
    if sha256_file(path) != entry.sha256:
        return f"'{name}' has another sha256"
    return None


@contextmanager
def create_artifact(path: str | Path, manifest: Manifest, *, force: bool = False) -> Iterator[Path]:
    """Create an artefact folder: yields a temporary sibling folder to write into, which becomes ``path`` on a clean exit.

    The manifest is completed (files, tool versions) and written last; on any exception nothing remains. The caller may fill in the
    manifest's fields until the ``with`` block ends. What a process that was killed has left of the same output goes first.
    """
    path = Path(path)
    check_output(path, force=force)
    prefix = f".{path.name}.partial-"
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.absolute().parent, prefix)
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=path.absolute().parent))
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:  # not a folder that takes files
        raise UsageError(f"cannot create {path}: {error.strerror}", "choose another output") from error
    try:
        with held(work):
            yield work
        manifest.tools = tool_versions()
        place_relative(manifest.details, path)
        names = sorted(p.relative_to(work).as_posix() for p in work.rglob("*") if p.is_file())
        manifest.files = {name: FileEntry(sha256=sha256_file(work / name), size=(work / name).stat().st_size) for name in names}
        for name in names:
            set_mode(work / name)  # some libraries write files that only their owner reads
            sync(work / name)
        write_text(work / MANIFEST_NAME, manifest.to_json())
        set_mode(work)
        check_output(path, force=force)  # again: another run may have been quicker
        put_in_place(work, path)
        sync(path.absolute().parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
