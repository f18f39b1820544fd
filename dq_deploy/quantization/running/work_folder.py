"""What an unfinished run keeps beside its output, so that ``--resume`` can go on from there.

``<output>.resume`` holds ``run.json`` (what the run was asked to do), one safetensors file for each finished stage, and scratch files.
It appears complete or not at all, is locked while a run uses it, and goes when the run has succeeded. It has no manifest: no artefact.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...errors import ArtifactError, EnvironmentProblem, UsageError

_RUN, _LOCK, _SCRATCH = "run.json", "lock", "scratch"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems


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
        """Record a stage as finished."""


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
        _check_wanted(path, Path(output), resume=resume, force=force)


class WorkFolder:
    """Stages of one run; the scratch folder starts empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.rmtree(self.scratch, ignore_errors=True)
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
            with safe_open(path, framework="pt") as stream:
                # A copy, because the mapped file is aligned otherwise than torch's own memory, and BLAS may then sum in another order.
                tensors = {key: stream.get_tensor(key).clone() for key in stream.keys()}  # noqa: SIM118  safe_open is no mapping
                return Stage(tensors, json.loads(stream.metadata()["record"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} of the interrupted run is damaged ({error})", "start anew with --force") from None

    def save(self, name: str, tensors: dict[str, torch.Tensor], record: Any) -> None:
        """Record a stage as finished: the file appears complete or not at all."""
        path = self._file(name)
        partial = path.with_suffix(".partial")
        contents = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        save_file(contents, partial, metadata={"record": json.dumps(record)})
        _sync(partial)
        partial.replace(path)
        _sync(self.path)

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
    wanted = json.loads(json.dumps(description, sort_keys=True))
    parent = next(p for p in path.absolute().parents if p.exists())
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    lock = _open(path, output, wanted, resume=resume, force=force)
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
            shutil.rmtree(path / _SCRATCH, ignore_errors=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
            _remove_empty(path.absolute().parent, parent)
        os.close(lock)


def _open(path: Path, output: Path, wanted: dict[str, Any], *, resume: bool, force: bool) -> int:
    """Make the folder, or take over the one that is there; gives the handle that holds the lock."""
    if path.exists() or path.is_symlink():
        lock = _lock(path, output)
        try:
            _check_wanted(path, output, resume=resume, force=force)
            if resume:
                _check_same(path, wanted)
                return lock
            # Out of the way in one step, so that a kill leaves no folder without its description.
            aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.absolute().parent))
            path.rename(aside / "old")
            shutil.rmtree(aside)
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.absolute().parent))
    (made / _RUN).write_text(json.dumps(wanted, indent=1, sort_keys=True) + "\n")
    (made / _LOCK).touch()
    lock = _lock(made, output)
    try:
        made.rename(path)  # onto a folder that is not empty: an error
    except OSError:
        os.close(lock)
        shutil.rmtree(made)
        raise _busy(output, path) from None
    return lock


def _lock(path: Path, output: Path) -> int:
    """Lock a work folder; the system lets go of it when the process ends, however it ends."""
    if not (path / _RUN).is_file() or not (path / _LOCK).is_file():
        raise UsageError(f"{path} is in the way: it is no work folder of dq-deploy", "move it, or choose another output")
    handle = os.open(path / _LOCK, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise _busy(output, path) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(handle)
            raise
    return handle


def _busy(output: Path, path: Path) -> UsageError:
    return UsageError(f"another run is writing {output} (its work is in {path})", "wait for it, or choose another output")


def _check_wanted(path: Path, output: Path, *, resume: bool, force: bool) -> None:
    if not resume and not force:
        raise UsageError(
            f"an interrupted run that was writing {output} is kept in {path}",
            "--resume goes on with it, --force forgets it and starts anew",
        )


def _check_same(path: Path, wanted: dict[str, Any]) -> None:
    try:
        found = json.loads((path / _RUN).read_text())
    except ValueError as error:
        raise ArtifactError(f"{path / _RUN} is damaged ({error})", "start anew with --force") from None
    missing = object()
    names = sorted({*found, *wanted})
    differing = [name for name in names if found.get(name, missing) != wanted.get(name, missing)]
    if differing:
        listing = "; ".join(f"{name} was {_show(found, name)}, now {_show(wanted, name)}" for name in differing)
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


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
