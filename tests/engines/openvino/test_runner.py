"""OpenVINO: precision as asked, and a CPU whose INT8 kernels saturate is found out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.openvino.int8_kernels import int8_saturates, int8_serves, int8_without_vnni
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.errors import ArtifactError, EnvironmentProblem
from tests.bundles import write_graph
from tests.engines.graphs import Graph
from tests.flow import Flow, altered_manifest

# An integer layer as a `tensorrt` bundle has it: Q/DQ of scale 1, the multipliers outside.
LAYER = """<ir_version: 10, opset_import: ["": 21]>
layer (float[batch, 64] sample) => (float[batch, 32] out_sample)
<float scale = {0.01}, float one = {1.0}, int8 zero = {0}>
{
    scaled = Div(sample, scale)
    q = QuantizeLinear(scaled, one, zero)
    dq = DequantizeLinear(q, one, zero)
    codes_f = Constant<value = float[64, 32] {%s}>()
    codes = QuantizeLinear(codes_f, one, zero)
    weight = DequantizeLinear(codes, one, zero)
    product = MatMul(dq, weight)
    out_sample = Mul(product, scale)
}"""


UNKNOWN = """<ir_version: 10, opset_import: ["": 21]>
seamless (float[batch, 4, 8, 8] sample) => (float[batch, 1, 20, 20] out_sample)
<int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}>
{
    padded = Pad<mode = "wrap">(sample, pads)
    out_sample = DepthToSpace<blocksize = 2>(padded)
}"""


def test_operators_that_it_does_not_take_are_named_with_the_reason(tmp_path: Path) -> None:
    """Not the last one alone, which fails for what comes before it."""
    file = write_graph(tmp_path / "seamless.onnx", UNKNOWN)
    with pytest.raises(ArtifactError, match=r"cannot load .*seamless.onnx: .*Pad-\d+: Unsupported padding mode: \[wrap\]"):
        OpenVinoRunner(file)


def test_saturation_is_reported_and_float_kernels_are_exact(tmp_path: Path) -> None:
    file = write_graph(tmp_path / "layer.onnx", LAYER % ", ".join(["127.0"] * 64 * 32))
    sample = np.full((4, 64), 1.27, np.float32)
    exact = np.full((4, 32), 64 * 127 * 1.27, np.float32)
    np.testing.assert_allclose(OpenVinoRunner(file, integer=False).run({"sample": sample}), exact, rtol=1e-5)
    integer = OpenVinoRunner(file, integer=True)
    agrees = np.allclose(integer.run({"sample": sample}), exact, rtol=1e-3)
    assert integer.details["int8_saturates"] == int8_saturates()
    assert agrees or int8_saturates()


def test_float_kernels_do_not_quantize_activations_once_more(tmp_path: Path) -> None:
    graph, random = Graph(), np.random.default_rng(0)
    model = graph.model(graph.linear("sample", "layer", 128, 64), 3, ["batch", "tokens", 128])
    onnx.save(model, tmp_path / "layer.onnx")
    # Within a group of 32, codes of very different sizes: one scale for all of them would lose the small ones.
    codes = random.integers(-127, 128, (2, 16, 128)) // np.array([1, 40] * 64)
    sample = (codes * 0.01).astype(np.float32)
    weight, scale, bias = (onnx.numpy_helper.to_array(graph.constants[f"layer.{n}"]) for n in ("weight.codes", "weight.scale", "bias"))
    exact = codes @ weight.astype(np.float64) * scale * 0.01 + bias
    found = OpenVinoRunner(tmp_path / "layer.onnx", integer=False).run({"sample": sample, "timestep": np.float32(0)})
    np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())


def test_the_default_is_exact_everywhere(tmp_path: Path) -> None:
    file = write_graph(tmp_path / "layer.onnx", LAYER % ", ".join(["127.0"] * 64 * 32))
    runner = OpenVinoRunner(file)
    np.testing.assert_allclose(runner.run({"sample": np.full((4, 64), 1.27, np.float32)}), np.full((4, 32), 64 * 127 * 1.27), rtol=1e-3)
    assert runner.details["integer"] is not int8_saturates()


def test_no_exact_way_is_an_environment_problem(tiny_bundle: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a CPU without VNNI, with an OpenVINO that ignores the setting.
    monkeypatch.setattr("dq_deploy.engines.openvino.int8_kernels.int8_saturates", lambda: True)
    monkeypatch.setattr("dq_deploy.engines.openvino.int8_kernels._saturates", lambda _: True)
    with pytest.raises(EnvironmentProblem, match="only INT8 kernels that saturate on this CPU(?s:.*)use the onnxruntime engine"):
        OpenVinoRunner(tiny_bundle)


@pytest.mark.skipif(not int8_saturates(), reason="this CPU has VNNI or its like: INT8 kernels are exact")
def test_seven_bit_weights_do_not_saturate(tmp_path: Path) -> None:
    file = write_graph(tmp_path / "layer.onnx", LAYER % ", ".join(["63.0"] * 64 * 32))
    result = OpenVinoRunner(file, integer=True).run({"sample": np.full((4, 64), 1.27, np.float32)})
    np.testing.assert_allclose(result, np.full((4, 32), 64 * 63 * 1.27, np.float32), rtol=1e-3)


@pytest.mark.parametrize("without_vnni", [True, False])
def test_int8_kernels_serve_where_they_are_exact_or_without_vnni(monkeypatch: pytest.MonkeyPatch, without_vnni: bool) -> None:
    monkeypatch.setattr("dq_deploy.engines.openvino.int8_kernels.int8_saturates", lambda: True)
    assert int8_serves(without_vnni) is without_vnni
    monkeypatch.setattr("dq_deploy.engines.openvino.int8_kernels.int8_saturates", lambda: False)
    assert int8_serves(without_vnni) is True


@pytest.mark.parametrize(
    ("bits", "op", "serves"), [(8, "conv2d", False), (7, "conv2d", False), (6, "conv2d", True), (4, "conv2d", True), (6, "linear", False)]
)
def test_without_vnni_int8_is_for_narrow_weights_of_convolutions(flow: Flow, tmp_path: Path, bits: int, op: str, serves: bool) -> None:
    bundle = flow.bundle("qdq")
    layers = [{**layer, "op": op, "weight_bits": bits} for layer in bundle.manifest.details["layers"]]
    changed = altered_manifest(bundle, tmp_path / "changed", details={**bundle.manifest.details, "layers": layers})
    assert int8_without_vnni(changed) is serves


def test_narrow_weights_run_on_int8_kernels_on_every_cpu(flow: Flow, tmp_path: Path) -> None:
    bundle = flow.bundle("qdq")
    layers = [{**layer, "weight_bits": 6} for layer in bundle.manifest.details["layers"]]
    narrow = altered_manifest(bundle, tmp_path / "narrow", details={**bundle.manifest.details, "layers": layers})
    assert OpenVinoRunner(narrow).details["integer"] is True
    assert OpenVinoRunner(bundle).details["integer"] is not int8_saturates()


def test_details_say_what_ran(tiny_bundle: Artifact) -> None:
    details = OpenVinoRunner(tiny_bundle, threads=1).details
    assert details["version"] == openvino.__version__
    assert (details["precision"], details["threads"]) == ("f32", 1)


@pytest.mark.skipif("BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="this CPU computes in bf16")
def test_a_precision_that_the_cpu_lacks_is_no_silent_fallback(tiny_bundle: Artifact) -> None:
    with pytest.raises(EnvironmentProblem, match="OpenVINO computes in float32 on this CPU, not in bfloat16 as asked"):
        OpenVinoRunner(tiny_bundle, precision="bf16")


def test_missing_package_names_the_command(tiny_bundle: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        EnvironmentProblem,
        match=r"openvino, which are not installed\n.* pip install \"openvino",
    ):
        OpenVinoRunner(tiny_bundle)


def test_signals_are_survived_after_models_have_come_and_gone(tiny_bundle: Artifact) -> None:
    program = (
        "import gc, os, signal\n"
        "from dq_deploy.engines.openvino.runner import OpenVinoRunner\n"
        "heard = []\n"
        "signal.signal(signal.SIGINT, lambda *_: heard.append(1))\n"
        f"first, second = OpenVinoRunner({str(tiny_bundle.path)!r}), OpenVinoRunner({str(tiny_bundle.path)!r})\n"
        "del first; gc.collect()\n"
        "del second; gc.collect()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('heard', len(heard))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout == "heard 1\n", f"exit code {result.returncode}: {result.stderr}"
