"""The one door out: a file appears whole or not at all, and is on the disk when the call returns.

What lies inside of the folder that ``create_artifact`` hands out is invisible until its manifest is written and the folder renamed; such
files may be written in any way, and are synced by it. Everything else goes through here.
"""

from __future__ import annotations

import ctypes
import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ABANDONED_S = 60.0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary sibling: a reader sees the old file, or the whole new one. Raises OSError."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """As ``write_bytes``, in UTF-8."""
    write_bytes(path, text.encode())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` (empty) to write into, which takes its place on a clean exit and goes on any other."""
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
