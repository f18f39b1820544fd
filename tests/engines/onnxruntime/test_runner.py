"""ONNX Runtime: the right provider, and integer layers that are exact on every CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.onnxruntime.runner import SESSION_CONFIG, OnnxRuntimeRunner, _session_options
from dq_deploy.errors import EnvironmentProblem, UsageError

# Integer layers as an `onnxruntime` bundle has them, scales looked up at run time: a Conv whose output is quantized, a MatMul with a bias.
LAYER = """<ir_version: 10, opset_import: ["": 21]>
layer (float[batch, {shape}] sample, float[1] timestep) => (float[batch, {shape_out}] out_sample)
<float[2] table = {{0.01, 0.02}}, float[2] table_out = {{40.0, 80.0}}, int8 zero = {{0}}, float weight_scale = {{0.01}},
 int64[1] first = {{0}}>
{{
    row = Cast<to=7>(timestep)
    scale_row = Gather(table, row)
    scale = Squeeze(scale_row, first)
    q = QuantizeLinear(sample, scale, zero)
    dq = DequantizeLinear(q, scale, zero)
    weight = DequantizeLinear(codes, weight_scale, zero)
    {layer}
}}"""
CONV = """scale_out_row = Gather(table_out, row)
    scale_out = Squeeze(scale_out_row, first)
    conv = Conv<pads=[1, 1, 1, 1]>(dq, weight)
    conv_q = QuantizeLinear(conv, scale_out, zero)
    out_sample = DequantizeLinear(conv_q, scale_out, zero)"""
MATMUL = """product = MatMul(dq, weight)
    out_sample = Add(product, bias)"""
BLOCKS = """<ir_version: 10, opset_import: ["": 21]>
blocks (float[batch, 64] sample) => (float[batch, 16] out_sample)
{
    weight = DequantizeLinear<axis=0, block_size=32>(codes, scales)
    out_sample = MatMul(sample, weight)
}"""
SHAPES = {"conv": ((64, 4, 4), (32, 4, 4), (32, 64, 3, 3)), "matmul": ((16, 64), (16, 32), (64, 32))}


def integer_layer(kind: str, file: Path) -> tuple[Path, np.ndarray]:
    """A layer and a sample with weights and activations at the end of their range, where 16-bit pair sums of u8 × s8 saturate."""
    shape, shape_out, weight = SHAPES[kind]
    dims = {"shape": ", ".join(map(str, shape)), "shape_out": ", ".join(map(str, shape_out))}
    model = onnx.parser.parse_model(LAYER.format(layer=CONV if kind == "conv" else MATMUL, **dims))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(weight, 127, np.int8), "codes"))
    if kind == "matmul":
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(32, np.float32), "bias"))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)
    return file, np.full((2, *shape), 1.27, np.float32)


@pytest.mark.parametrize(("kind", "fused"), [("conv", "QLinearConv"), ("matmul", "MatMulIntegerToFloat")])
def test_fused_integer_layers_do_not_saturate(kind: str, fused: str, tmp_path: Path) -> None:
    file, sample = integer_layer(kind, tmp_path / "layer.onnx")
    options = _session_options(onnxruntime, True, None, SESSION_CONFIG)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    assert fused in {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}

    inputs = {"sample": sample, "timestep": 0}
    exact = OnnxRuntimeRunner(file, optimized=False).run(inputs)
    np.testing.assert_allclose(OnnxRuntimeRunner(file).run(inputs), exact, rtol=1e-5)


def test_eight_bit_weights_in_blocks_run(tmp_path: Path) -> None:
    """The last layer of a model whose other weights are blocks of 4 bits."""
    model = onnx.parser.parse_model(BLOCKS)
    codes = np.random.default_rng(0).integers(-127, 128, (64, 16)).astype(np.int8)
    scales = np.random.default_rng(1).uniform(0.01, 0.02, (2, 16)).astype(np.float32)
    model.graph.initializer.extend([onnx.numpy_helper.from_array(codes, "codes"), onnx.numpy_helper.from_array(scales, "scales")])
    onnx.save(model, tmp_path / "blocks.onnx")
    sample = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    runner = OnnxRuntimeRunner(tmp_path / "blocks.onnx")
    np.testing.assert_allclose(runner.run({"sample": sample}), sample @ (codes * scales.repeat(32, axis=0)), rtol=1e-4, atol=1e-4)
    assert "session.x64quantprecision" not in runner.details["session_config"]


def test_details_say_what_ran(tiny_bundle: Artifact) -> None:
    details = OnnxRuntimeRunner(tiny_bundle, threads=1, optimized=False).details
    assert details["version"] == onnxruntime.__version__
    assert (details["provider"], details["optimized"], details["threads"]) == ("CPUExecutionProvider", False, 1)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA")
def test_a_provider_that_is_not_there_is_no_silent_fallback(tiny_bundle: Artifact) -> None:
    with pytest.raises(EnvironmentProblem, match=r"does not use provider CUDAExecutionProvider here(?s:.*)pip install \"onnxruntime-gpu"):
        OnnxRuntimeRunner(tiny_bundle, providers=("CUDAExecutionProvider", "CPUExecutionProvider"))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_gives_way_to_another_is_found(tiny_bundle: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Onnxruntime says that it has the provider, cannot start it, warns, and takes the CPU's: no number may come from there."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(EnvironmentProblem, match="does not use provider CUDAExecutionProvider here; it has CPUExecutionProvider") as caught:
        OnnxRuntimeRunner(tiny_bundle, providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert caught.value.exit_code == 4


def test_no_provider_is_a_usage_error(tiny_bundle: Artifact) -> None:
    with pytest.raises(UsageError, match="no onnxruntime provider"):
        OnnxRuntimeRunner(tiny_bundle, providers=())


def test_missing_package_names_the_command(tiny_bundle: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        EnvironmentProblem,
        match=r"onnxruntime, which are not installed\n.* pip install \"onnxruntime",
    ):
        OnnxRuntimeRunner(tiny_bundle)
