"""A few of the kills; ``make soak`` does 200."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dq_deploy.artifacts import Manifest, create_artifact, writing
from tests.soak.kills import kill, stages


def test_killed_at_random_points(tmp_path: Path) -> None:
    for stage, count in zip(stages(tmp_path), (3, 1, 2), strict=True):
        result = kill(stage, count, tmp_path, seed=1)
        assert result.failures == []
        assert result.kills == count
        assert result.compared > 0


def test_what_a_killed_run_has_left_goes_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, fresh, other = (tmp_path / name for name in (".out.partial-dead", ".out.partial-young", ".other.partial-dead"))
    for folder in (left, fresh, other):
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"half")
    old = time.time() - 2 * writing.ABANDONED_S
    for folder in (left, other):
        os.utime(folder, (old, old))
    with create_artifact(tmp_path / "out", Manifest(kind="triton-repository", model="m")) as running:
        os.utime(running, (old, old))
        with create_artifact(tmp_path / "out.too", Manifest(kind="triton-repository", model="m")):
            pass
        writing.remove_abandoned(tmp_path, ".out.partial-")
        assert running.exists(), "a folder that is being written is nobody's to remove"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.too", fresh.name, other.name}
