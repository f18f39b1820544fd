"""Builds share a timing cache: nothing is lost, and what is not a cache is named.

TensorRT-RTX's timing caches are always empty, so the cache of a builder is a set of names here; lock and files are real.
"""

from __future__ import annotations

import multiprocessing
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from dq_deploy.artifacts import writing
from dq_deploy.engines.tensorrt import timing_cache
from dq_deploy.engines.tensorrt.timing_cache import load_timing_cache, save_timing_cache
from dq_deploy.errors import ArtifactError, EnvironmentProblem

HEADER = "cache of 10.9:"


class Cache:
    def __init__(self, content: bytes = b"") -> None:
        self.names = set(filter(None, content.decode().removeprefix(HEADER).split(",")))

    def combine(self, other: Cache, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.names |= other.names
        return True

    @contextmanager
    def serialize(self) -> Any:
        yield (HEADER + ",".join(sorted(self.names))).encode()


class Config:
    """The part of a builder's configuration that has to do with its cache; it knows caches of one version."""

    def __init__(self) -> None:
        self.cache: Cache | None = None

    def create_timing_cache(self, content: bytes) -> Cache | None:
        return Cache(content) if not content or content.startswith(HEADER.encode()) else None

    def set_timing_cache(self, cache: Cache, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self) -> Cache:
        assert self.cache is not None
        return self.cache


def build(path: Path, kernels: list[str], seconds: float = 0.0) -> None:
    config = Config()
    load_timing_cache(config, path)
    time.sleep(seconds)
    config.get_timing_cache().names.update(kernels)
    save_timing_cache(config, path)


def names(path: Path) -> set[str]:
    return Cache(path.read_bytes()).names


def test_a_later_build_reads_and_completes_the_cache(tmp_path: Path) -> None:
    build(tmp_path / "cache", ["a"])
    config = Config()
    load_timing_cache(config, tmp_path / "cache")
    assert config.get_timing_cache().names == {"a"}
    build(tmp_path / "cache", ["b"])
    assert names(tmp_path / "cache") == {"a", "b"}
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "cache.lock"}


def test_builds_side_by_side_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    # Both have read the empty cache before either of them writes.
    children = [context.Process(target=build, args=(path, [f"{n}-{i}" for i in range(50)], 0.3)) for n in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert names(path) == {f"{n}-{i}" for n in range(4) for i in range(50)}


@pytest.mark.parametrize("content", [b"garbage", b"cache of 10.2:a"])
def test_damaged_and_foreign_caches_are_named_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"is not a timing cache of this TensorRT on this GPU(?s:.*)delete it, or give another file"):
        load_timing_cache(Config(), path)
    assert path.read_bytes() == content


def test_cache_that_the_builder_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "cache", ["a"])
    monkeypatch.setattr(Config, "set_timing_cache", lambda *_, **__: False)
    with pytest.raises(ArtifactError, match="was made with another version or on another GPU"):
        load_timing_cache(Config(), tmp_path / "cache")


def test_cache_replaced_by_a_foreign_one_during_a_build_is_kept(tmp_path: Path) -> None:
    config, path = Config(), tmp_path / "cache"
    load_timing_cache(config, path)
    path.write_bytes(b"another's")
    with pytest.raises(ArtifactError, match="is not a timing cache"):
        save_timing_cache(config, path)
    assert path.read_bytes() == b"another's"


def test_lock_that_is_never_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_cache, "LOCK_TIMEOUT_S", 0.1)
    with FileLock(f"{tmp_path / 'cache'}.lock"), pytest.raises(EnvironmentProblem, match="has been locked by another process for 0 s"):
        load_timing_cache(Config(), tmp_path / "cache")


def test_write_that_fails_leaves_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cache"
    build(path, ["a"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        build(path, ["b"])
    assert names(path) == {"a"}
    assert {entry.name for entry in tmp_path.iterdir()} == {"cache", "cache.lock"}
