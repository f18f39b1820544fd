"""Full and read-only disks, limits, two runs at once: an artefact appears whole or not at all, and what was there stays."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dq_deploy.artifacts import Artifact, Kind, Manifest, create_artifact, open_artifact, writing
from dq_deploy.artifacts import folder as folder_module
from dq_deploy.artifacts.reading import check_safetensors, read_tensors
from dq_deploy.commands.errors import known_error
from dq_deploy.errors import UsageError
from tests.flow import snapshot

KIND: Kind = "triton-repository"  # the kind with the fewest details
DETAILS = {"name": "m", "backend": "onnxruntime", "kind": "KIND_AUTO", "max_batch_size": 8, "dynamic_batching": True}


def make(path: Path, content: bytes = b"weights", *, force: bool = False) -> Artifact:
    with create_artifact(path, Manifest(kind=KIND, model="m", details=DETAILS), force=force) as folder:
        (folder / "data").write_bytes(content)
    return open_artifact(path, KIND)


def test_a_full_disk(small_disk: Path) -> None:
    make(small_disk / "before")
    before = snapshot(small_disk)
    for force in (False, True):
        with pytest.raises(OSError, match="No space left") as caught:
            make(small_disk / ("before" if force else "new"), bytes(2 << 20), force=force)
        error = known_error(caught.value)
        assert error is not None
        assert error.exit_code == 5
        assert snapshot(small_disk) == before
    with pytest.raises(OSError, match="No space left"):
        writing.write_bytes(small_disk / "before" / "data", bytes(2 << 20))
    assert snapshot(small_disk) == before


def test_a_read_only_disk(small_disk: Path) -> None:
    make(small_disk / "before")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UsageError, match="is not a writable folder"):
        make(small_disk / "new")
    with pytest.raises(OSError, match="Read-only") as caught:
        make(small_disk / "before", force=True)
    error = known_error(caught.value)
    assert error is not None
    assert error.exit_code == 2
    assert open_artifact(small_disk / "before", KIND).file("data").read_bytes() == b"weights"


LIMITED = """
import resource, sys
from pathlib import Path
import onnx
from dq_deploy.cli import run
resource.setrlimit(getattr(resource, sys.argv[1]), (int(sys.argv[2]),) * 2)
sys.exit(run(sys.argv[3:]))
"""


def limited(limit: str, size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, limit, str(size), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_out_of_memory(tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as stream:
        stream.truncate(2_000_000_000)  # no disk is used
    ended = limited("RLIMIT_AS", 1_500_000_000, "check", tmp_path / "model.onnx", "--lint")
    assert ended.returncode == 5, ended.stderr
    assert ended.stderr.startswith("error: out of memory")
    assert "Traceback" not in ended.stderr


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            make(tmp_path / "new", bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = known_error(caught.value)
    assert error is not None
    assert error.exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_of_two_runs_into_one_new_output_the_first_one_stays(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="output .*out already exists"),
        create_artifact(tmp_path / "out", Manifest(kind=KIND, model="later", details=DETAILS)) as folder,
    ):
        (folder / "data").write_bytes(b"later")
        make(tmp_path / "out", b"first")
    assert open_artifact(tmp_path / "out", KIND).file("data").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_replacing_leaves_one_of_the_two_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(writing.ctypes, "CDLL", lambda _: object())
    make(tmp_path / "out", b"old")
    seen, remove = [], shutil.rmtree

    def removing(path: Path, **options: Any) -> None:
        seen.append((tmp_path / "out" / "data").read_bytes())
        remove(path, **options)

    monkeypatch.setattr(writing.shutil, "rmtree", removing)
    assert make(tmp_path / "out", b"new", force=True).file("data").read_bytes() == b"new"
    assert seen == [b"new"], "the old one is removed when the new one is in its place"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_interrupted_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), create_artifact(tmp_path / "out", Manifest(kind=KIND, model="m", details=DETAILS)) as folder:
        (folder / "data").write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other file is on the disk by then, and the folder is not in sight yet."""
    synced: list[str] = []
    write = folder_module.write_text

    def manifest(path: Path, text: str) -> None:
        assert path.name == "manifest.json"
        assert synced == ["data"]
        assert not (tmp_path / "out").exists()
        assert sorted(p.name for p in path.parent.iterdir()) == ["data"]
        write(path, text)
        synced.append("manifest.json")

    monkeypatch.setattr(folder_module, "sync", lambda path: synced.append(path.name))
    monkeypatch.setattr(folder_module, "write_text", manifest)
    make(tmp_path / "out")
    assert synced == ["data", "manifest.json", tmp_path.name]


def test_tensors_on_a_full_disk(small_disk: Path) -> None:
    torch = pytest.importorskip("torch")
    writing.write_tensors(small_disk / "x.safetensors", {"x": torch.zeros(8)}, {"record": "1"})
    before = snapshot(small_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        writing.write_tensors(small_disk / "x.safetensors", {"x": torch.zeros(1 << 20)})
    error = known_error(caught.value)
    assert error is not None
    assert error.exit_code == 5
    assert "x.safetensors" in error.message
    assert snapshot(small_disk) == before


def test_tensors_come_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {"x": torch.arange(6, dtype=torch.int8).reshape(2, 3), "none": torch.zeros(0, 4)}
    writing.write_tensors(tmp_path / "x.safetensors", tensors, {"record": "1"})
    assert check_safetensors(tmp_path / "x.safetensors") == {"record": "1"}
    found = read_tensors(tmp_path / "x.safetensors")
    assert {name: (value.dtype, value.tolist()) for name, value in found.items()} == {
        "x": (torch.int8, [[0, 1, 2], [3, 4, 5]]),
        "none": (torch.float32, []),
    }
