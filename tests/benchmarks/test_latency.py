"""The latency study: contenders of one model give the same pictures, and the page says which targets were met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.latency.__main__ import main
from benchmarks.latency.preparing import HELD_OUT
from benchmarks.latency.quality import trajectory_snr
from benchmarks.latency.report import page
from benchmarks.latency.runners import PlainOnnxRuntime, PlainOpenVino, TorchRunner
from benchmarks.latency.subjects import SUBJECTS
from benchmarks.latency.timing import BASELINE
from dq_deploy.engines.bench import Contender
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.quantization import load_checkpoint
from dq_deploy.sources import load_source
from tests.flow import Flow


@pytest.mark.parametrize("steps", [np.float32(500.0), np.full(2, 500.0, np.float32)])
def test_everyone_computes_the_float_model(flow: Flow, steps: Any) -> None:
    graph = flow.bundle("float").file("model.onnx")
    inputs = {"sample": np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32), "timestep": steps}
    eager = TorchRunner(load_source(str(flow.pipeline)).model.eval(), ["sample", "timestep"], compiled=False, threads=1).run(inputs)
    for runner in (PlainOnnxRuntime(graph, threads=1), PlainOpenVino(graph, threads=1)):
        np.testing.assert_allclose(runner.run(inputs), eager, rtol=1e-3, atol=1e-4)


def test_models_have_the_sizes_that_their_names_say(tmp_path: Path) -> None:
    sizes = {name: sum(p.numel() for p in SUBJECTS[name].module(tmp_path / name).parameters()) for name in ("unet-6m", "unet-86m")}
    assert round(sizes["unet-6m"] / 1e6) == 6
    assert round(sizes["unet-86m"] / 1e6) == 86


def test_quality_is_judged_on_trajectories_of_seeds_that_nobody_saw(flow: Flow) -> None:
    checkpoint = load_checkpoint(flow.checkpoint)
    seen: list[Any] = []

    class Recording(PlainOnnxRuntime):
        def run(self, inputs: Any) -> Any:
            seen.append(inputs)
            return super().run(inputs)

    contenders = [
        Contender(name, runner, lambda _: [])
        for name, runner in {
            "float": Recording(flow.bundle("float").file("model.onnx"), threads=1),
            "again": PlainOpenVino(flow.bundle("float").file("model.onnx"), threads=1),
            "ours": OnnxRuntimeRunner(flow.bundles["onnxruntime"], threads=1),
        }.items()
    ]
    found = trajectory_snr(contenders, checkpoint)
    assert list(found) == ["again", "ours"]
    assert found["again"]["worst"] > 80 > found["ours"]["median"] >= found["ours"]["worst"] > 10
    reference = checkpoint.reference()
    assert len(seen) == HELD_OUT * len(reference.timesteps)
    np.testing.assert_array_equal(seen[-1]["sample"], reference.samples[-1, -1:].numpy())


def row(contender: str, batch: int, speed: float) -> dict[str, Any]:
    return {"contender": contender, "batch": batch, "ratio": 1 / speed, "ratio_low": 0.9 / speed, "ratio_high": 1.1 / speed,
            "median_ms": 10 / speed}  # fmt: skip


def result(ours: float) -> dict[str, Any]:
    speeds = {
        BASELINE: (1.0, None),
        "OpenVINO, NNCF static INT8": (2.0, 20.0),
        "ours on ONNX Runtime": (1.0, 30.0),
        "ours on OpenVINO": (ours, 40.0),
    }
    return {
        "parameters": 2_700_000, "threads": 1, "note": "On a quiet machine.",
        "machine": {"cpu": "a CPU", "instructions": ["avx2"], "versions": {"torch": "2"}},
        "settings": {"batches": [1, 8], "runs": 20},
        "rows": [row(name, batch, speed) for name, (speed, _) in speeds.items() for batch in (1, 8)],
        "snr": {name: {"median": snr, "worst": snr - 5} for name, (_, snr) in speeds.items() if snr},
        "static_pairs": [{"kernels": "INT8 kernels", "batch": 1, "value": 1.04, "low": 1.02, "high": 1.06}],
        "profiles": {"ours": [{"kernel": "Convolution (I8)", "count": 33, "ms": 6.4}]},
        "pictures": {"engines": {"tensorrt": "openvino"}, "rows": [{"name": "PyTorch eager", "pictures_per_s": 1.0, "speed": 1.0},
                                                                   {"name": "ours, tensorrt bundle", "pictures_per_s": 3.5, "speed": 3.5}]},
        "startup": {"help_s": 0.4, "help_s_least": 0.2, "export_s": 4.0, "bare_export_s": 3.0},
    }  # fmt: skip


def test_the_page_judges_every_target() -> None:
    text = page({"unet": result(2.4)})
    verdicts = [line for line in text.splitlines() if line.startswith("- ")]
    assert "This CPU has no VNNI" in text
    assert "- unet, batch 1: ≥ 2.2 × ONNX Runtime in float: met, 2.40 (ours on OpenVINO)." in verdicts
    assert "- unet, batch 8: ≥ 2.5 × ONNX Runtime in float: **missed**, 2.40 (ours on OpenVINO)." in verdicts
    assert "- unet, batch 1: ≥ 1.2 × NNCF at better quality: met, 1.20 × at 40.0 dB against 20.0 dB (ours on OpenVINO)." in verdicts
    assert any("per-timestep over static scales (INT8 kernels): **missed**, time ratio 1.040 (1.020–1.060)" in line for line in verdicts)
    assert any("--help` ≤ 0.3 s: **missed**, 0.40 s" in line for line in verdicts)
    assert any("export ≤ 1.5 × a bare" in line and ": met, 1.33" in line for line in verdicts)
    assert "- unet: pictures per second ≥ 3 × PyTorch eager: met, 3.50 ×." in verdicts
    assert "| ours on OpenVINO | 2.40 (2.18–2.67) | 4.2 | 2.40 (2.18–2.67) | 4.2 | 40.0 | 35.0 |" in text
    assert "6.40 ms in 33 Convolution (I8)" in text


def test_a_fast_contender_of_less_quality_does_not_beat_nncf() -> None:
    found = result(2.4)
    found["rows"] += [row("ours on OpenVINO, W6A6", batch, 3.0) for batch in (1, 8)]
    found["snr"]["ours on OpenVINO, W6A6"] = {"median": 19.0, "worst": 10.0}
    text = page({"unet": found})
    assert "- unet, batch 1: ≥ 2.2 × ONNX Runtime in float: met, 3.00 (ours on OpenVINO, W6A6)." in text
    assert "- unet, batch 1: ≥ 1.2 × NNCF at better quality: met, 1.20 × at 40.0 dB" in text
    found["snr"] |= {name: {"median": 19.0, "worst": 10.0} for name in found["snr"] if name.startswith("ours")}
    assert "**missed**, 1.50 × at 19.0 dB against 20.0 dB (ours on OpenVINO, W6A6)." in page({"unet": found})


def test_an_unknown_model_is_refused(tmp_path: Any) -> None:
    done = CliRunner().invoke(main, ["--models", "unet,unknown", "--results", str(tmp_path / "r"), "--page", str(tmp_path / "p.md")])
    assert done.exit_code == 2
    assert "no model unknown" in done.output
