"""A timing cache that several builds share: read and completed under a lock, replaced as a whole.

TensorRT's caches are opaque; what it offers is ``combine``. A build adds to what is on disk when it has finished, not to what it has read
when it began, so builds that ran side by side lose nothing of each other's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...artifacts.reading import read_bytes
from ...artifacts.writing import write_bytes
from ...errors import ArtifactError, EnvironmentProblem

# The lock is held while a file of some MB is read and written.
LOCK_TIMEOUT_S = 60.0
CACHE_LIMIT = 1 << 30  # theirs have some megabytes
_HINT = "delete it, or give another file to --timing-cache"


def load_timing_cache(config: Any, path: Path) -> None:
    """Give a builder's ``config`` the cache on disk, or an empty one where none exists yet.

    Raises ArtifactError (damaged, or of another TensorRT or GPU) and EnvironmentProblem (locked for too long).
    """
    with _locked(path):
        cache = _read(config, path)
    if cache is not None and not config.set_timing_cache(cache, ignore_mismatch=False):
        raise _foreign(path)
    if cache is None:
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def save_timing_cache(config: Any, path: Path) -> None:
    """Add what a build has timed to the cache on disk. Raises as ``load_timing_cache`` does."""
    mine = config.get_timing_cache()
    with _locked(path):
        before = _read(config, path)
        if before is not None and not mine.combine(before, ignore_mismatch=False):
            raise _foreign(path)
        with mine.serialize() as content:
            write_bytes(path, bytes(content))


def _locked(path: Path) -> Any:
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT_S)
    try:
        # Released when the `with` block that this is handed to ends.
        return lock.acquire()
    except Timeout:
        raise EnvironmentProblem(
            f"the timing cache {path} has been locked by another process for {LOCK_TIMEOUT_S:.0f} s",
            "wait for the other build, or give this one a cache of its own",
        ) from None


def _read(config: Any, path: Path) -> Any:
    content = read_bytes(path, limit=CACHE_LIMIT, hint=_HINT) if path.exists() else b""
    if not content:
        return None
    try:
        cache = config.create_timing_cache(content)
    except (RuntimeError, TypeError):
        cache = None
    if cache is None:
        raise _foreign(path)
    return cache


def _foreign(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path} is not a timing cache of this TensorRT on this GPU: it is damaged, or was made with another version or on another GPU",
        _HINT,
    )
