"""Writing one result file: whole or not at all, and never over something unasked."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ResourceError, UsageError
from .writing import write_bytes


def check_output_file(path: Path, suffix: str | tuple[str, ...], *, force: bool = False) -> None:
    """Refuse an output file that cannot be written, before any long step.

    Raises UsageError: another suffix, a folder, an existing file without ``force``, a parent that is not a writable folder.
    """
    suffixes = (suffix,) if isinstance(suffix, str) else suffix
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"output {path} does not end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UsageError(f"output {path} is a folder, and a file is needed")
    if (path.exists() or path.is_symlink()) and not force:
        raise UsageError(f"output {path} already exists", "choose another output, or pass --force to replace it")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write {path}: {parent} is not a writable folder")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all, and the folders above it. Raises ResourceError when the disk takes no more."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        write_bytes(path, data)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error
