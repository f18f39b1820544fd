"""Timing on a GPU, up to the calls that need one: device times, clocks, the roofline."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.bench import Contender, bench, contenders_from, gpu, gpu_clocks
from dq_deploy.engines.bench.gpu_clocks import Clocks, clock_notes, parse_clocks, read_clocks
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.layer_report import LayerReport, build_report
from dq_deploy.engines.layer_report.kernels import LayerDump
from dq_deploy.engines.layer_report.roofline import Peaks, Work, describe, peaks_of, roofline, work_of
from dq_deploy.engines.tensorrt import runner as tensorrt_runner
from dq_deploy.engines.tensorrt.runner import TensorRtRunner
from tests.engines import graphs
from tests.engines.tensorrt.fake import HostDevice, engine_of, install
from tests.engines.test_layer_report import kernel, planned_layer

# In the form of nvidia-smi --query-gpu=… --format=csv,noheader,nounits, as its manual has it.
LINE = "2520, 3105, 10501, 47, 61.50\n"


def clocks(sm: float | None) -> Clocks:
    return Clocks(sm, 2000.0, 1000.0, 50.0, 100.0)


def report_of(*, macs: int) -> str:
    """A layer report with one INT8 layer and one in FP16."""
    kernels = (kernel("a", "gemm", "int8 | int8 | fp32", "a/MatMul"), kernel("b", "gemm", "fp16 | fp16 | fp16", "b/MatMul"))
    dump = LayerDump(kernels=kernels, operators={"a/MatMul": "MatMul", "b/MatMul": "MatMul"}, weights_bytes=64_000_000)
    planned = [planned_layer(name, macs=macs) for name in "ab"]
    return build_report(dump, backend="tensorrt", version="10.9", compute_capability="8.9", planned=planned).to_json()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    graph = graphs.Graph()
    folder = tmp_path_factory.mktemp("bundle")
    return graphs.make_bundle(folder / "bundle", graph, graph.conv("sample", "layer", 16, 16), ["batch", 16, 8, 8])


def on_gpu(engine: Artifact, monkeypatch: pytest.MonkeyPatch, **device: bool) -> Contender:
    install(monkeypatch)
    runner = TensorRtRunner(engine, cuda_graphs=True, device=HostDevice(**device))  # type: ignore[arg-type]
    generator = np.random.default_rng(0)

    def inputs(batch: int) -> list[dict[str, np.ndarray]]:
        sample = generator.standard_normal((batch, 16, 8, 8)).astype(np.float32)
        return [{"sample": sample, "timestep": np.float32(step)} for step in (0.0, 3.0)]

    return Contender("engine · tensorrt", runner, inputs, str(engine.path))


def test_device_times_clocks_and_roofline_are_added(bundle: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "read_clocks", lambda: clocks(1900.0))
    contender = on_gpu(engine_of(bundle, tmp_path / "engine", report=report_of(macs=10**9)), monkeypatch)
    steps: list[int] = []

    class Progress:
        def __init__(self, _: str, total: int) -> None:
            steps.append(-total)

        def __enter__(self):  # type: ignore[no-untyped-def]
            return lambda count, _: steps.append(count)

        def __exit__(self, *_: object) -> None:
            pass

    result = bench([contender], runs=4, warmup=1, batches=(1, 2), progress=Progress)  # type: ignore[arg-type]
    assert sum(steps) == 0
    assert [(row.device_median_ms, row.device_p90_ms) for row in result.rows] == [(2.0, 2.0)] * 2
    # 64 MB at 64 GB/s take 1 ms; 2·10⁹ operations at 204.8 T INT8/s and 102.4 T FP16/s far less.
    assert [row.floor_ms for row in result.rows] == [pytest.approx(1.0)] * 2
    assert len(result.machine["gpu_clocks"]) == 4
    assert "the GPU's clock stood at 1900 MHz of 2000" in result.notes
    assert any("engine · tensorrt, batch 2: 2.000 ms on the device, 50% of the roofline" in note for note in result.notes)
    assert not [note for note in result.notes if "CUDA graph" in note]


def test_what_is_not_known_is_said(bundle: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "read_clocks", lambda: None)
    contender = on_gpu(engine_of(bundle, tmp_path / "engine"), monkeypatch, capturable=False)
    result = bench([contender], runs=1, warmup=0)
    assert result.rows[0].device_median_ms == 2.0
    assert result.rows[0].floor_ms is None
    assert "engine · tensorrt: CUDA graph not possible: operation not permitted when stream is capturing" in result.notes
    assert "the GPU's clocks could not be read: times may not be comparable" in result.notes
    assert "engine · tensorrt, batch 1: no roofline, since the engine's layers are not known" in result.notes
    monkeypatch.setattr(HostDevice, "peaks", lambda *_: None)
    assert any("since the GPU's peaks are not known" in note for note in bench([contender], runs=1, warmup=0).notes)


def test_nothing_is_added_for_a_cpu(tiny_bundle: Artifact) -> None:
    result = bench(contenders_from([tiny_bundle], engines=["onnxruntime"]), runs=1, warmup=0)
    assert result.rows[0].device_median_ms is None
    assert "gpu_clocks" not in result.machine
    assert result.notes == []


def test_engine_of_tensorrt_is_a_contender(bundle: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr(tensorrt_runner, "CudaDevice", HostDevice)
    (contender,) = contenders_from([engine_of(bundle, tmp_path / "engine")])
    assert contender.name == "engine · tensorrt"
    assert contender.runner.details["cuda_graphs"] == "asked for"


def test_clocks_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_clocks(LINE) == Clocks(2520.0, 3105.0, 10501.0, 47.0, 61.5)
    assert parse_clocks("[N/A], 3105, 10501, 47, [N/A]\n") == Clocks(None, 3105.0, 10501.0, 47.0, None)
    assert parse_clocks("No devices were found\n") is None
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{LINE.strip()}\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert read_clocks() == parse_clocks(LINE)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert read_clocks() is None
    monkeypatch.setattr(gpu_clocks.shutil, "which", lambda _: None)
    assert read_clocks() is None


def test_clocks_that_move_are_named_with_the_command() -> None:
    assert clock_notes([clocks(1995.0), clocks(2010.0)]) == ["the GPU's clock stood at 2010 MHz of 2000"]
    (note,) = clock_notes([clocks(1500.0), clocks(None), clocks(2010.0)])
    assert "moved from 1500 to 2010 MHz" in note
    assert "nvidia-smi --lock-gpu-clocks=1500" in note


def test_peaks_are_the_whitepapers() -> None:
    # RTX 4090: 128 multiprocessors, 2520 MHz, 10501 MHz memory at 384 bits: 661 INT8 TOPS, 330 FP16 TFLOPS, 1008 GB/s.
    rtx = peaks_of("8.9", multiprocessors=128, clock_hz=2520e6, memory_hz=10501e6, bus_bits=384)
    assert rtx is not None
    assert rtx.operations["int8"] == pytest.approx(660.6e12, rel=1e-3)
    assert rtx.operations["fp16"] == pytest.approx(330.3e12, rel=1e-3)
    assert rtx.bytes_per_s == pytest.approx(1008e9, rel=1e-3)
    # A100 SXM 40 GB: 108 multiprocessors, 1410 MHz, 1215 MHz memory at 5120 bits: 624 INT8 TOPS, 1555 GB/s.
    a100 = peaks_of("8.0", multiprocessors=108, clock_hz=1410e6, memory_hz=1215e6, bus_bits=5120)
    assert a100 is not None
    assert a100.operations["int8"] == pytest.approx(624e12, rel=1e-3)
    assert a100.bytes_per_s == pytest.approx(1555e9, rel=1e-3)
    assert peaks_of("6.1", multiprocessors=1, clock_hz=1, memory_hz=1, bus_bits=8) is None


def test_roofline_takes_the_larger_bound() -> None:
    peaks = Peaks({"int8": 1e12, "fp16": 5e11}, bytes_per_s=1e9)
    work = Work({"int8": 10**9, "fp16": 10**9, "fp32": 5}, weights_bytes=1_000_000)
    assert roofline(work, peaks, batch=1).floor_ms == pytest.approx(6.0)  # 2 + 4 ms of products, 1 ms of weights
    assert roofline(work, peaks, batch=4).floor_ms == pytest.approx(24.0)
    assert roofline(work, peaks, batch=1).bound == "compute"
    assert roofline(work, peaks, batch=1).uncounted == ("fp32",)
    assert roofline(Work({"int8": 10**8}, 10**9), peaks, batch=1).bound == "memory"
    text = describe("x", 1, 12.0, roofline(work, peaks, 1), work, peaks)
    assert "50% of the roofline" in text
    assert "fp32 not counted" in text


def test_work_is_the_layer_report_s() -> None:
    assert work_of(LayerReport.model_validate_json(report_of(macs=7))) == Work({"int8": 7, "fp16": 7}, 64_000_000)


@pytest.mark.gpu
def test_gpu_bench_of_real_engines(tiny_bundle: Artifact, tmp_path: Path) -> None:
    import torch

    backend = next((name for name in ("tensorrt", "tensorrt-rtx") if importlib.util.find_spec(name.replace("-", "_"))), None)
    if backend is None:
        pytest.skip("neither TensorRT nor TensorRT-RTX is installed")
    major, minor = torch.cuda.get_device_capability()
    options = {"compute_capabilities": [f"{major}.{minor}"]} if backend == "tensorrt-rtx" else {}
    engine = build_engine(tiny_bundle, tmp_path / "engine", backend=backend, batch=(1, 2, 8), **options)
    result = bench(contenders_from([tiny_bundle, engine]), batches=(1, 8), runs=20, warmup=5)
    rows = [row for row in result.rows if row.engine == backend]
    assert all(row.device_median_ms is not None and 0 < row.device_median_ms < row.median_ms for row in rows)
    assert all(row.snr_db is None or row.snr_db > 40 for row in rows)
    assert result.machine["gpu_clocks"]


@pytest.mark.gpu
def test_gpu_clocks_are_read() -> None:
    assert subprocess.run(["nvidia-smi"], check=False, capture_output=True).returncode == 0
    reading = read_clocks()
    assert reading is not None
    assert reading.sm_mhz is not None
