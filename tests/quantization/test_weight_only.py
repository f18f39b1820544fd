"""Only weights are quantized: activations stay float, from the configuration to both graphs and the compiler."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import UNet2DModel
from onnx import TensorProto, numpy_helper

from dq_deploy.accuracy import check
from dq_deploy.artifacts import Artifact
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.engines.onnxruntime.runner import optimized_operators
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters import export
from dq_deploy.exporters.lint import lint
from dq_deploy.formats import of_bits
from dq_deploy.quantization.checkpoint import Checkpoint, integer_tensors, load_checkpoint
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.numerics import half_precision
from dq_deploy.quantization.weights import QuantizedWeight, WeightOnlyConv2d, WeightOnlyLinear
from dq_deploy.quantization.weights.blocked import block_length
from tests.flow import altered
from tests.tiny import change_tensors, make_checkpoint, tiny_unet

LINEAR = "down_blocks.1.attentions.0.to_q"
CONV = "down_blocks.0.resnets.0.conv1"


def unet() -> UNet2DModel:
    """Channels that a block of 32 divides, and in the timestep's embedding some of 64."""
    return tiny_unet(block_out_channels=(16, 32))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(
        unet(), tmp_path_factory.mktemp("w4a16") / "checkpoint", preset="w4a16", dilation="auto", iterations=10, reference_samples=8
    )


@pytest.fixture(scope="module")
def bundles(checkpoint: Checkpoint) -> dict[str, Artifact]:
    """Both targets, in the type that each has by default: fp16 for ``qdq``, fp32 for ``onnxruntime``."""
    folder = checkpoint.artifact.path.parent
    return {target: export(checkpoint.artifact, folder / target, target=target) for target in ("qdq", "onnxruntime")}


@pytest.fixture(params=["qdq", "onnxruntime"])
def bundle(request: pytest.FixtureRequest, bundles: dict[str, Artifact]) -> Artifact:
    return bundles[request.param]


def test_a_block_divides_the_channels() -> None:
    assert [block_length(wanted, channels) for wanted, channels in [(64, 128), (64, 96), (128, 64), (32, 48), (0, 64), (64, 8)]] == [
        64,
        32,
        64,
        0,
        0,
        0,
    ]


def test_scales_are_what_fp16_has() -> None:
    scale = torch.tensor([1e-9, 1e-3, 1 / 3, 1e6])
    rounded = half_precision(scale)
    assert torch.equal(rounded.half().float(), rounded)
    assert bool((rounded >= torch.finfo(torch.float16).smallest_normal).all())
    torch.testing.assert_close(rounded[1:3], scale[1:3], rtol=2**-11, atol=0)


def test_each_block_of_a_row_has_the_scale_of_its_own_range() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 64) * torch.tensor([1.0, 100.0]).repeat_interleave(32)
    layer = WeightOnlyLinear(weight, torch.randn(3), of_bits(4), block=32)
    codes, scale = layer.integer_weight()
    assert (codes.shape, scale.shape) == ((3, 64), (3, 2))
    torch.testing.assert_close(scale, weight.reshape(3, 2, 32).abs().amax(dim=2) / 7)
    x = torch.randn(2, 5, 64)
    exact = torch.nn.functional.linear(x, weight, layer.bias)
    whole = WeightOnlyLinear(weight, layer.bias, of_bits(4), block=0)
    error, error_of_whole = (float((one(x) - exact).detach().pow(2).mean()) for one in (layer, whole))
    assert error < error_of_whole
    layer.freeze()
    assert layer.frozen is not None
    assert layer.frozen[0].abs().max() == 7
    expected = torch.nn.functional.linear(x, layer.frozen[0].float() * layer.frozen[1].repeat_interleave(32, dim=1), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(("options", "words"), [
    ({"dilation": "symmetric"}, "dilation"),
    ({"activations": "static"}, "activations"),
    ({"zero_points": False, "skip_halves": "joint"}, "zero_points, skip_halves"),
    ({"weight_block": 48}, "weight_block"),
])  # fmt: skip
def test_choices_about_activations_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        QuantizeConfig.build("w4a16", **options)


def test_blocks_beside_integer_activations_are_refused() -> None:
    with pytest.raises(UsageError, match=r"weight_block 32 .* TensorRT refuses blocks .* take more bits .*--auto-bits.* vq3a8"):
        QuantizeConfig.build("w4a8", weight_block=32)


def test_every_layer_with_a_weight_is_planned_and_no_table_is_made(checkpoint: Checkpoint) -> None:
    details = checkpoint.artifact.manifest.details
    assert checkpoint.quantizers == {}
    assert (details["quantizers"], details["dilation"]) == ([], [])
    layers = {entry["name"]: entry for entry in details["layers"]}
    assert {entry["activation_bits"] for entry in layers.values()} == {16}
    assert {entry["op"] for entry in layers.values()} == {"conv2d", "linear"}
    assert (layers["conv_out"]["weight_bits"], layers[LINEAR]["weight_bits"]) == (8, 4)
    assert (layers[LINEAR]["weight_block"], layers["time_embedding.linear_2"]["weight_block"]) == (32, 64)
    reasons = {entry["name"]: entry["reason"] for entry in details["float_layers"]}
    assert reasons.pop("conv_in") == "keep @first=float"
    assert set(reasons.values()) == {"both operands are activations, which stay float"}
    assert details["skip_halves"]["split"] == []


def test_distillation_trains_the_weights(checkpoint: Checkpoint) -> None:
    snr = checkpoint.details.snr_db
    assert np.mean(snr["after_distillation"]) > np.mean(snr["before_distillation"])
    assert all(record.iterations for record in checkpoint.details.distillation)


def test_loading_gives_back_the_same_integers_and_outputs(checkpoint: Checkpoint) -> None:
    again = load_checkpoint(checkpoint.artifact.path)
    before, after = integer_tensors(checkpoint.model), integer_tensors(again.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    kinds = {type(layer) for layer in again.layers.values()}
    assert kinds == {WeightOnlyLinear, WeightOnlyConv2d}


@pytest.mark.parametrize("change", [
    lambda t: t.update({f"{LINEAR}.weight.scale": t[f"{LINEAR}.weight.scale"].repeat(1, 2)}),
    lambda t: t.update({f"{LINEAR}.weight.scale": t[f"{LINEAR}.weight.scale"] * 0}),
    lambda t: t.update({f"{CONV}.weight.scale": t[f"{CONV}.weight.scale"][:-1].clone()}),
])  # fmt: skip
def test_tampered_scales_are_refused(checkpoint: Checkpoint, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    copy = Path(shutil.copytree(checkpoint.artifact.path, tmp_path / "copy"))
    with pytest.raises(ArtifactError, match="weight.scale"):
        load_checkpoint(change_tensors(copy, change))


def test_both_parity_tests_pass(checkpoint: Checkpoint, bundle: Artifact) -> None:
    result = check(bundle, checkpoint.artifact)
    assert result, result.failures
    assert {row.layer for row in result.layers} == set(checkpoint.layers)
    assert all(row.code_mismatches == 0 < row.code_elements for row in result.layers)


def test_the_graph_holds_the_checkpoints_codes_in_half_a_byte(checkpoint: Checkpoint, bundle: Artifact) -> None:
    graph = onnx.load(bundle.path / "model.onnx").graph
    found = {i.name: i for i in graph.initializer}
    for name, layer in checkpoint.layers.items():
        assert isinstance(layer, WeightOnlyLinear | WeightOnlyConv2d)
        assert layer.frozen is not None
        stored = found[f"{name}.weight.codes"]
        assert stored.data_type == (TensorProto.INT4 if layer.bits == 4 else TensorProto.INT8)
        codes = layer.frozen[0].numpy()
        assert np.array_equal(numpy_helper.to_array(stored).astype(np.int8), codes.T if codes.ndim == 2 else codes)
    assert not any(node.op_type == "QuantizeLinear" for node in graph.node)
    assert not any("boundaries" in name for name in found)
    blocks = {a.i for n in graph.node if n.op_type == "DequantizeLinear" for a in n.attribute if a.name == "block_size"}
    assert blocks == {32, 64}


def test_a_changed_code_and_a_dropped_bias_fail(checkpoint: Checkpoint, bundle: Artifact, tmp_path: Path) -> None:
    def one_code(model: onnx.ModelProto) -> None:
        stored = next(i for i in model.graph.initializer if i.name == f"{LINEAR}.weight.codes")
        raw = bytearray(stored.raw_data)
        raw[0] ^= 1
        stored.raw_data = bytes(raw)

    def no_bias(model: onnx.ModelProto) -> None:
        stored = next(i for i in model.graph.initializer if i.name.startswith(f"{CONV}.bias"))
        stored.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(stored)), stored.name))

    for number, (change, layer) in enumerate([(one_code, LINEAR), (no_bias, CONV)]):
        result = check(altered(bundle, tmp_path / str(number), change), checkpoint.artifact)
        assert not result
        assert [row.layer for row in result.layers if not row.passed] == [layer]


def test_lint_has_no_objection(bundle: Artifact) -> None:
    result = lint(bundle)
    assert result, [str(f) for f in result.findings]


def test_onnxruntime_multiplies_packed_weights(checkpoint: Checkpoint, bundles: dict[str, Artifact]) -> None:
    linear = [name for name, layer in checkpoint.layers.items() if isinstance(layer, WeightOnlyLinear)]
    assert optimized_operators(bundles["onnxruntime"].path / "model.onnx").count("MatMulNBits") == len(linear)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_the_compiler_keeps_the_weights_in_half_a_byte(checkpoint: Checkpoint, bundles: dict[str, Artifact], tmp_path: Path) -> None:
    (report,) = load_report(build_engine(bundles["qdq"], tmp_path / "engine", backend="tensorrt-rtx", compute_capabilities=["8.9"]))
    weights = sum(layer.frozen[0].numel() for layer in checkpoint.layers.values() if isinstance(layer, QuantizedWeight) and layer.frozen)
    # Half a byte a weight, and scales, biases, norms and the first layer in fp16.
    assert 0.5 * weights < report.weights_bytes < 0.8 * weights
    assert report.layers == ()  # none was planned for INT8
