"""``inspect`` shows and draws the scale tables of checkpoints and bundles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dq_deploy.artifacts.reading import read_tensors
from dq_deploy.cli import run
from dq_deploy.formats import ScaleSource
from dq_deploy.quantization.checkpoint import MODEL, load_checkpoint
from tests.flow import Flow


def inspect(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    code = run(["inspect", *map(str, arguments)])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def stored_tables(flow: Flow) -> dict[str, tuple[list[float], list[int]]]:
    """Scales and zero-points by quantizer as the checkpoint stores them: a row for each calibrated timestep."""
    loaded = load_checkpoint(flow.checkpoint)
    tensors = read_tensors(loaded.artifact.file(MODEL))
    tables = [name for name, quantizer in loaded.quantizers.items() if quantizer.source is not ScaleSource.COMPUTED]
    return {name: (tensors[f"{name}.scale"].tolist(), tensors[f"{name}.zero_point"].tolist()) for name in tables}


@pytest.mark.parametrize("artifact", ["checkpoint", "qdq-fp16", "onnxruntime"])
def test_every_table_is_shown_with_the_checkpoints_values(artifact: str, flow: Flow, capfd: pytest.CaptureFixture[str]) -> None:
    path = flow.checkpoint if artifact == "checkpoint" else flow.bundles[artifact]
    code, out, _ = inspect(capfd, path, "--format", "json")
    assert code == 0
    shown = json.loads(out)["scale_tables"]
    stored = stored_tables(flow)
    assert set(stored) <= set(shown) == set(load_checkpoint(flow.checkpoint).quantizers)
    for name, (scales, zero_points) in stored.items():
        assert shown[name]["rows"] == len(scales)
        wanted = {"min": min(scales), "max": max(scales), "first": scales[0], "last": scales[-1]}
        assert shown[name]["scale"] == pytest.approx(wanted, rel=1e-7)
        assert (shown[name]["zero_point"]["min"], shown[name]["zero_point"]["max"]) == (min(zero_points), max(zero_points))
    assert "scales" not in next(iter(shown.values()))
    assert len({entry["scale"]["min"] for entry in shown.values()}) > 1


def test_one_layer_in_full(flow: Flow, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = flow.bundles["qdq"]
    code, out, _ = inspect(capfd, bundle, "--layer", "*resnets.0.conv1", "--format", "json")
    assert code == 0
    tables = json.loads(out)["scale_tables"]
    assert tables
    assert all(name.endswith("resnets.0.conv1.input") for name in tables)
    stored = stored_tables(flow)
    for name, table in tables.items():
        assert (table["scales"], table["zero_points"]) == stored[name]
    code, out, _ = inspect(capfd, bundle, "--layer", "*resnets.0.conv1")
    assert "zero-point" in out
    assert f"{next(iter(tables.values()))['scales'][0]:.6g}" in out


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_bundles_tables_are_drawn_without_torch(suffix: str, flow: Flow, tmp_path: Path) -> None:
    picture = tmp_path / f"tables.{suffix}"
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom dq_deploy.cli import run\n"
        f"sys.exit(run(['inspect', {str(flow.bundles['qdq'])!r}, '--plot', {str(picture)!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    start = picture.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if suffix == "png" else b"<svg" in picture.read_bytes()[:1000]
    assert len(picture.read_bytes()) > 5000


def test_bad_requests(flow: Flow, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    existing = tmp_path / "there.png"
    existing.write_text("a picture")
    for arguments, words in (
        (["--layer", "nothing.like.it"], "no quantizer or layer matches 'nothing.like.it'"),
        (["--plot", tmp_path / "tables.gif"], "is neither .png nor .svg"),
        (["--plot", existing], "exists already"),
        (["--plot", tmp_path / "no" / "tables.png"], "no such folder"),
    ):
        code, _, err = inspect(capfd, flow.bundles["qdq"], *arguments)
        assert code == 2
        assert words in " ".join(err.split())
    code, _, err = inspect(capfd, flow.bundles["float"], "--plot", tmp_path / "float.svg")
    assert code == 2
    assert "no scale tables to draw" in " ".join(err.split())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there.png"]
    assert existing.read_text() == "a picture"
