"""The one door out: a file appears whole or not at all, and is on the disk when the call returns.

What lies inside of the folder that ``create_artifact`` hands out is invisible until its manifest is written and the folder renamed; such
files may also be written by libraries that do so themselves, and are synced by it. Everything else goes through here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ABANDONED_S = 60.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of some network file systems
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary sibling: a reader sees the old file, or the whole new one. Raises OSError."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """As ``write_bytes``, in UTF-8."""
    write_bytes(path, text.encode())


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """As ``write_bytes``, tensors of any shape in safetensors. Raises OSError, also where the library has an error of its own for it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # noqa: TID251  the door

    with replacing(path) as partial:
        try:
            save_file(dict(tensors), partial, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` (empty) to write into, which takes its place on a clean exit and is removed on any other."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.absolute().parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        set_mode(partial)
        sync(partial)
        partial.replace(path)
        sync(path.absolute().parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_partial(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder that nobody else writes into."""
    for pattern in (".*.partial-*", ".tmp*"):  # ours, and those of safetensors
        for path in folder.glob(pattern):
            path.unlink()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a temporary folder for as long as it is written: the system lets go of it when the process ends, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: then nothing that is left there is ever removed
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def locked(file: Path) -> int | None:
    """A handle that holds a file's lock until it is closed or the process ends; None when another process has it.

    On a file system without locks every process gets one. Raises OSError.
    """
    handle = os.open(file, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return handle
        os.close(handle)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return handle


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove temporary folders, named ``prefix`` and more, that no process holds any longer: those of one that was killed."""
    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        try:
            # One that was made just now may not be held yet.
            if folder.is_symlink() or time.time() - folder.stat().st_mtime < ABANDONED_S:
                continue
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(handle)


def take_name(folder: Path, path: Path) -> bool:
    """Rename a folder to a name that is free (or an empty folder's); False when another was quicker, and the folder is gone then."""
    try:
        folder.rename(path)
    except OSError as error:
        remove(folder)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def remove_at_once(path: Path) -> None:
    """Remove a folder that is out of sight before the first of its files goes: a kill leaves no half of it under its name."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.absolute().parent))
    path.rename(aside / "old")
    shutil.rmtree(aside)


def remove(folder: Path) -> None:
    """Remove a folder of our own, as far as that is possible."""
    shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, path: Path) -> None:
    """Rename a folder; one that is there is exchanged with it in one step, so that there is always one, and then removed.

    Where the system cannot exchange two names, the old one is moved aside first.
    """
    if not path.exists():
        folder.rename(path)
        return
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (_AT_FDCWD, os.fsencode(folder), _AT_FDCWD, os.fsencode(path))
    if renameat2 is None or renameat2(*names, _RENAME_EXCHANGE) != 0:
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.absolute().parent))
        path.rename(aside / "old")
        folder.rename(path)
        folder = aside
    shutil.rmtree(folder)


def sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_mode(path: Path) -> None:
    """Give a file or a folder the permissions that a new one has: temporary ones are their owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
