"""What an unfinished run keeps beside its output, so that ``--resume`` can go on from there.

``<output>.resume`` holds ``run.json`` (what the run was asked to do), one safetensors file for each finished stage, and scratch files.
It appears complete or not at all, is locked while a run uses it, and goes when the run has succeeded. It has no manifest: no artefact.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ...artifacts.reading import check_safetensors, read_json, read_tensors
from ...artifacts.writing import locked, remove, remove_at_once, remove_partial, take_name, write_bytes, write_tensors, write_text
from ...errors import ArtifactError, EnvironmentProblem, UsageError

_RUN, _LOCK, _SCRATCH = "run.json", "lock", "scratch"


@dataclass(frozen=True)
class Stage:
    """A finished stage: tensors, and what is said about them in JSON."""

    tensors: dict[str, torch.Tensor]
    record: Any


class Stages(Protocol):
    """Where finished stages are kept; ``scratch`` is for values between them, None for the system's folder."""

    @property
    def scratch(self) -> Path | None: ...  # noqa: D102

    def load(self, name: str) -> Stage | None:
        """A finished stage; None if it is not finished."""

    def save(self, name: str, tensors: dict[str, torch.Tensor], record: Any) -> None:
        """Record a stage, with tensors of any shape, as finished."""


def work_path(output: str | Path) -> Path:
    """Where a run that writes ``output`` keeps its unfinished work."""
    output = Path(output)
    return output.with_name(f"{output.name}.resume")


def check_no_run(output: str | Path, *, resume: bool, force: bool) -> None:
    """Refuse, before any long step, what ``WorkFolder`` would refuse later.

    Raises UsageError when another run is writing ``output``, or an interrupted one is kept and neither ``resume`` nor ``force`` is given.
    """
    path = work_path(output)
    if path.exists() or path.is_symlink():
        os.close(_lock(path, Path(output)))
        _check_resumed(path, Path(output), resume=resume, force=force)


class WorkFolder:
    """Stages of one run; the scratch folder starts empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        remove_partial(path)
        remove(self.scratch)
        self.scratch.mkdir()

    @property
    def scratch(self) -> Path:
        """A folder for values that are recomputed after a restart."""
        return self.path / _SCRATCH

    def load(self, name: str) -> Stage | None:
        """A finished stage, in memory of its own; None if it is not finished.

        Raises ArtifactError when its file is damaged.
        """
        path = self._file(name)
        if not path.exists():
            return None
        try:
            record = json.loads(check_safetensors(path)["record"])  # a loss may be NaN
            # A copy, because the mapped file is aligned otherwise than torch's own memory, and BLAS may then sum in another order.
            return Stage({key: value.clone() for key, value in read_tensors(path).items()}, record)
        except (ArtifactError, OSError, KeyError, ValueError) as error:
            said = error.message if isinstance(error, ArtifactError) else str(error)
            raise ArtifactError(f"{path} of the interrupted run is damaged ({said})", "start anew with --force") from None

    def save(self, name: str, tensors: dict[str, torch.Tensor], record: Any) -> None:
        """Record a stage, with tensors of any shape, as finished: the file appears complete or not at all."""
        contents = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        write_tensors(self._file(name), contents, {"record": json.dumps(record)})

    @property
    def stages(self) -> list[str]:
        """Names of the finished stages."""
        return sorted(path.stem for path in self.path.glob("*.safetensors"))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


@contextmanager
def work_folder(output: str | Path, description: Mapping[str, Any], *, resume: bool = False, force: bool = False) -> Iterator[WorkFolder]:
    """The work folder of a run that writes ``output``, locked until the block ends.

    ``description`` (JSON values) is what must be equal for a run to go on. The folder goes when the block ends well, when it fails by the
    user's input (UsageError, ArtifactError, EnvironmentProblem: nothing is written then), or when no stage is finished; else it stays.

    Raises UsageError when another run is writing ``output``, when an interrupted one is kept and neither ``resume`` nor ``force`` is given,
    or when it was asked to do something else.
    """
    output, path = Path(output), work_path(output)
    described = json.loads(json.dumps(description, sort_keys=True))
    parent = next(p for p in path.absolute().parents if p.exists())
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    lock = _open(path, output, described, resume=resume, force=force)
    fresh = not list(path.glob("*.safetensors"))
    keep = False
    try:
        work = WorkFolder(path)
        try:
            yield work
        except (UsageError, ArtifactError, EnvironmentProblem):
            keep = not fresh
            raise
        except BaseException:
            keep = bool(work.stages)
            raise
    finally:
        if keep:
            remove(path / _SCRATCH)
        else:
            remove(path)
            _remove_empty(path.absolute().parent, parent)
        os.close(lock)


def _open(path: Path, output: Path, described: dict[str, Any], *, resume: bool, force: bool) -> int:
    """Make the folder, or take over the one that is there; gives the handle that holds the lock."""
    if path.exists() or path.is_symlink():
        lock = _lock(path, output)
        try:
            _check_resumed(path, output, resume=resume, force=force)
            if resume:
                _check_same(path, described)
                return lock
            remove_at_once(path)  # a kill leaves no folder without its description
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.absolute().parent))
    write_text(made / _RUN, json.dumps(described, indent=1, sort_keys=True) + "\n")
    write_bytes(made / _LOCK, b"")
    lock = _lock(made, output)
    if not take_name(made, path):
        os.close(lock)
        raise _busy(output, path)
    return lock


def _lock(path: Path, output: Path) -> int:
    """Lock a work folder; the system lets go of it when the process ends, however it ends."""
    if not (path / _RUN).is_file() or not (path / _LOCK).is_file():
        raise UsageError(f"{path} is in the way: it is not a work folder of dq-deploy", "move it, or choose another output")
    handle = locked(path / _LOCK)
    if handle is None:
        raise _busy(output, path)
    return handle


def _busy(output: Path, path: Path) -> UsageError:
    return UsageError(f"another run is writing {output} (its work is in {path})", "wait for it, or choose another output")


def _check_resumed(path: Path, output: Path, *, resume: bool, force: bool) -> None:
    if not resume and not force:
        raise UsageError(
            f"an interrupted run that was writing {output} is kept in {path}",
            "--resume continues it, --force discards it and starts anew",
        )


def _check_same(path: Path, described: dict[str, Any]) -> None:
    found = read_json(path / _RUN, "the description of a run", hint="start anew with --force")
    if not isinstance(found, dict):
        raise ArtifactError(f"{path / _RUN} is not the description of a run", "start anew with --force")
    missing = object()
    names = sorted({*found, *described})
    differing = [name for name in names if found.get(name, missing) != described.get(name, missing)]
    if differing:
        listing = "; ".join(f"{name} was {_show(found, name)}, now {_show(described, name)}" for name in differing)
        raise UsageError(
            f"the interrupted run in {path} was another one: {listing}", "give what it was given, or forget it and start anew with --force"
        )


def _show(description: Mapping[str, Any], name: str) -> str:
    return json.dumps(description[name]) if name in description else "not there"


def _remove_empty(folder: Path, stop: Path) -> None:
    """Remove folders that were made for nothing, up to ``stop``."""
    while folder != stop and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
