"""Which file a name stands for: one in the artefact's folder, or in the cache of a hub that the folder is a view of."""

from __future__ import annotations

import stat
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath

REMAKE = "make it again, or restore the original files"


def shown(name: str) -> str:
    """A name from a file for an error of one line."""
    return f"'{name}'" if name.isprintable() else ascii(name)


def name_problem(name: str) -> str | None:
    """Why a name from a file must not be followed, whatever is there; None for a plain relative path."""
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.is_absolute() or windows.drive or name.startswith("\\"):
        return "is absolute"
    if ".." in windows.parts:  # which split at both kinds of slashes
        return "leaves the folder"
    if not name or not name.isprintable() or "\\" in name or PurePosixPath(name).as_posix() != name:
        return "is not a plain file name"
    return None


def file_problem(folder: Path, name: str) -> str | None:
    """Why the file must not be opened; None for a regular one in the folder, by way of links that stay there or lead into its hub cache."""
    path = folder / name
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except FileNotFoundError:
        return "is missing"
    except (OSError, RuntimeError):  # a loop of links, a file as a folder
        return "cannot be followed to a file"
    if not any(real.is_relative_to(root) for root in _roots(folder)):
        return "leaves the folder through a link"
    return None if stat.S_ISREG(mode) else "is not a regular file"


def in_hub_cache(folder: Path, path: Path) -> bool:
    """Whether a file of ``folder`` is a link into the blobs of the hub cache that the folder is a snapshot of."""
    blobs = _blobs(folder)
    return blobs is not None and path.is_symlink() and path.resolve().is_relative_to(blobs)


def _roots(folder: Path) -> list[Path]:
    blobs = _blobs(folder)
    return [folder.resolve()] + ([blobs] if blobs else [])


def _blobs(folder: Path) -> Path | None:
    """``models--owner--name/blobs`` of a folder in ``models--owner--name/snapshots/<revision>``: Hugging Face's cache, all of it links."""
    real = folder.resolve()
    for revision, snapshots in pairwise([real, *real.parents]):
        repository, named = snapshots.parent, snapshots.name == "snapshots" and revision != snapshots
        blobs = repository / "blobs"
        if named and "--" in repository.name and blobs.is_dir() and not blobs.is_symlink():
            return blobs
    return None
