"""FP8 on the command line: the whole way of a pipeline, and what is refused with which exit code."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.command_line import Cli, assert_refused
from tests.flow import Flow, snapshot

FAST = ("--steps", "2", "--calibration-samples", "2", "--iterations", "0", "--rounding", "nearest", "--seed", "3")
RTX = ("--backend", "tensorrt-rtx")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "options.json"
    file.write_text('{"max_float_share": 0.5, "reference_samples": 8}')
    return file


@pytest.mark.nightly
def test_from_a_pipeline_to_a_plan(cli: Cli, tmp_path: Path, flow: Flow, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = cli("quantize", flow.pipeline, "-o", "checkpoint", "--preset", "fp8", "--config", config, *FAST)
    assert made.code == 0, made.err
    exported = cli("export", "checkpoint", "-o", "bundle", "--target", "qdq", "--dtype", "fp32")
    assert exported.code == 0, exported.err
    checked = cli("check", "bundle", "--checkpoint", "checkpoint", "--format", "json")
    assert checked.code == 0, checked.err
    assert json.loads(checked.out)["failures"] == []
    for artifact in ("checkpoint", "bundle"):
        shown = cli("inspect", artifact)
        assert shown.code == 0
        assert "W8A8-FP8" in shown.out
        assert "FP8" in next(line for line in shown.out.splitlines() if "preset: products" in line)
    drawn = cli("sample", "bundle", "-o", "grid.png", "-n", "2", "--steps", "2")
    assert drawn.code == 0, drawn.err
    reported = cli("report", "checkpoint", "bundle", "-o", "report.html", "--no-samples", "--format", "json")
    assert reported.code == 0, reported.err
    text = Path("report.html").read_text()
    assert "8-bit weights, 8-bit activations (FP8)" in text
    assert "--preset fp8" in text
    assert "--config" in text  # what the preset does not fill in
    if find_spec("tensorrt_rtx") is not None:
        built = cli("build-engine", "bundle", "-o", "engine", *RTX, "--compute-capability", "8.9", "--format", "json")
        assert built.code == 0, built.err
        (report,) = json.loads(built.out)["reports"]
        assert report["as_planned"] == report["planned_layers"] > 5
        assert "warning" not in built.err
        assert_refused(
            cli("build-engine", "bundle", "-o", "old", *RTX, "--compute-capability", "8.6"), 3, "FP8 on 8.6", "8.9", "--preset w8a8"
        )
    assert_refused(cli("build-engine", "bundle", "-o", "cpu", "--backend", "openvino"), 3, "FP8 on CPU", "--preset w8a8")
    assert_refused(cli("export", "checkpoint", "-o", "other", "--target", "onnxruntime"), 2, "are FP8", "--target qdq")
    assert not {"old", "cpu", "other"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(("flags", "words"), [
    (("--preset", "fp9"), ("unknown preset 'fp9'", "did you mean", "fp8, w4a8-fp8")),
    (("--preset", "fp8", "--weight-bits", "6"), ("weight_bits is 6", "2 to 4")),
    (("--preset", "fp8", "--activation-bits", "4"), ("activation_bits is 4", "FP8 has 8")),
    (("--preset", "fp8", "--keep", "*=6"), ("keep * is 6",)),
    (("--preset", "fp8", "--auto-bits", "0.2x"), ("8 bits already",)),
    (("--preset", "nvfp4", "--weight-bits", "6"), ("weight_bits is 6", "4 bits (NVFP4) or 8 (FP8)")),
    (("--preset", "nvfp4", "--dilation", "layerwise"), ("dilation is layerwise", "leave it out")),
    (("--preset", "nvfp4", "--keep", "down_blocks*=4"), ("cannot be multiplied in FP4", "leave it at 8")),
    (("--preset", "nvfp4", "--auto-bits", "0.2x"), ("chooses its own", "--keep")),
])  # fmt: skip
def test_what_floats_cannot_be(cli: Cli, tmp_path: Path, flow: Flow, flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_refused(cli("quantize", flow.pipeline, "-o", tmp_path / "o", *flags, *FAST), 2, *words)
    assert snapshot(tmp_path) == {}
