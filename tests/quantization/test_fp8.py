"""FP8 (E4M3): its grid against all of its 256 numbers, gradients, ranges, GPTQ, and networks from calibration to a loaded checkpoint."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx import GraphModule

from dq_deploy.artifacts.layer_bits import bits_label
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.formats import FP8, FP16, INT8, of_bits
from dq_deploy.quantization import grid, numerics
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.quantization.choices import InitialRange
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.distillation.distill import distill
from dq_deploy.quantization.graph.modules import named_layers, named_quantizers
from dq_deploy.quantization.quantizers.observation import Observation
from dq_deploy.quantization.quantizers.ranges import search_tables
from dq_deploy.quantization.rounding.columns import Rounder, nearest_codes
from dq_deploy.quantization.rounding.layerwise import round_weights
from dq_deploy.quantization.weights import QuantizedConv2d, QuantizedLinear
from tests.shared import made_once
from tests.tiny import FAST, PlainUNet, change_tensors, make_checkpoint, quantized_copy, tiny_unet
from tests.tiny_pipelines import tiny_dit

EVERY = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
NUMBERS = EVERY[~EVERY.isnan()].unique()  # 253: the two zeros are one


def by_search(x: torch.Tensor) -> torch.Tensor:
    """The nearest number, found among all; of two that are as near, the one whose last bit is 0."""
    distance = (x[:, None] - NUMBERS).abs()
    even = grid.positions(NUMBERS, FP8) % 2 == 0
    nearest = distance == distance.amin(dim=1, keepdim=True)
    preferred = torch.where(nearest, even.double() + 1, 0.0)
    return NUMBERS[preferred.argmax(dim=1)]


def test_the_format_is_e4m3() -> None:
    assert (FP8.largest, FP8.scaled, FP8.integer, FP8.last_step, FP8.unclipped_range()) == (448.0, True, False, 32.0, (-464.0, 464.0))
    assert (len(NUMBERS), float(NUMBERS.max()), float(NUMBERS[NUMBERS > 0].min())) == (253, 448.0, 2.0**-9)
    assert (of_bits(8, "fp8"), of_bits(8), of_bits(4, "fp8").name, of_bits(16, "fp8")) == (FP8, INT8, "INT4", FP16)
    assert not FP16.scaled


def test_rounding_is_half_to_even_on_the_grid() -> None:
    ties = (NUMBERS[1:] + NUMBERS[:-1]) / 2
    x = torch.cat([NUMBERS, ties, torch.randn(20_000, dtype=torch.float64) * 100, torch.randn(5_000, dtype=torch.float64) * 2.0**-8])
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(grid.nearest(x.to(dtype), FP8).double(), by_search(x.to(dtype).double()))


@pytest.mark.parametrize(("value", "code"), [
    (448.0, 448.0), (447.9, 448.0), (431.9, 416.0), (463.9, 448.0), (464.0, 448.0), (480.0, 448.0), (1e30, 448.0), (math.inf, 448.0),
    (2.0**-9, 2.0**-9), (2.0**-10, 0.0), (2.0**-10 * 1.01, 2.0**-9), (0.0, 0.0),
])  # fmt: skip
def test_it_saturates_at_448_and_keeps_nan(value: float, code: float) -> None:
    x = torch.tensor([value, -value, math.nan])
    for codes in (grid.nearest(x, FP8), numerics.quantize(x, torch.ones(1), torch.zeros(1), FP8)):
        assert codes[:2].tolist() == [code, -code]
        assert bool(codes[2].isnan())


def test_spacing_and_positions_are_those_of_the_numbers() -> None:
    gaps = NUMBERS.diff()
    nearest = torch.minimum(torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]]))
    assert torch.equal(grid.spacing(NUMBERS, FP8), nearest)
    assert grid.positions(NUMBERS, FP8).diff().unique().tolist() == [1.0]
    assert grid.positions(torch.tensor([0.0, -0.0, 2.0**-9, math.nan]), FP8)[:3].tolist() == [0.0, 0.0, 1.0]
    assert bool(grid.positions(torch.tensor([math.nan]), FP8).isnan())
    assert torch.equal(NUMBERS.to(grid.held(FP8)).double(), NUMBERS)


def test_gradients_pass_straight_through_where_nothing_saturates() -> None:
    x = torch.tensor([[0.3, -2.2, 100.0, 463.0, 465.0, -1e4]], dtype=torch.float64, requires_grad=True)
    inverse = torch.full((1, 1), 1.0, dtype=torch.float64, requires_grad=True)
    codes = numerics.quantize(x, inverse, torch.zeros(1, 1), FP8)
    assert torch.equal(codes.detach(), grid.nearest(x.detach(), FP8))
    codes.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 1, 1, 1, 0, 0]]
    assert float(inverse.grad) == pytest.approx(float(x.detach()[:, :4].sum()))  # type: ignore[arg-type]
    weight = torch.tensor([[0.3, -2.2, 100.0, 465.0]], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    numerics.quantize_weight(weight, scale, FP8).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[2, 2, 2, 0]]
    assert float(scale.grad) == pytest.approx(-float(weight.detach()[0, :3].sum()) / 0.25)  # type: ignore[arg-type]


@pytest.mark.parametrize("reach", [0.2, 1.0, 1.4])
def test_the_error_that_a_histogram_tells_is_the_measured_one(reach: float) -> None:
    x = torch.nn.functional.silu(3 * torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0)))
    seen = Observation.of(x, 2)
    scale, zero = numerics.affine_parameters(seen.low, reach * seen.high, FP8, symmetric=True)
    rounding, clipping = seen.bins().error(scale, zero, FP8)
    got = numerics.quantize(x, (1 / scale)[:, None], zero[:, None], FP8) * scale[:, None]
    torch.testing.assert_close((rounding + clipping).float() / x.shape[1], (got - x).square().mean(dim=1), rtol=0.03, atol=0)
    assert bool((clipping > 0).all()) == (reach < 0.9)


def test_the_range_is_searched_by_measured_error() -> None:
    x = torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0))
    seen = Observation.of(x, 4)
    scale, zero = search_tables(seen, FP8, symmetric=True, rule=InitialRange.LEAST_ERROR)
    assert not bool(zero.any())
    error = (numerics.quantize(x, (1 / scale)[:, None], zero[:, None], FP8) * scale[:, None] - x).square().mean(dim=1)
    assert bool((-10 * error.log10() > 31).all())  # relative to 1: an eighth of a number at the most, whatever its size
    w = torch.randn(64, 288, generator=torch.Generator().manual_seed(0))
    errors = [
        (numerics.quantize_weight(w, scale, FP8) * scale[:, None] - w).square().sum(dim=1)
        for scale in (numerics.clipped_weight_scale(w, FP8), numerics.weight_scale(w, FP8))
    ]
    assert bool((errors[0] <= errors[1]).all())
    assert float(errors[0].sum()) < 0.92 * float(errors[1].sum())
    assert numerics.clipped_weight_scale(torch.zeros(2, 3), FP8).tolist() == [1.0, 1.0]


def test_gptq_rounds_to_numbers_of_the_grid_and_gains() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 24, generator=generator, dtype=torch.float64) @ torch.randn(24, 24, generator=generator, dtype=torch.float64)
    weight, moments = torch.randn(8, 24, generator=generator, dtype=torch.float64), x.T @ x / len(x)
    scale, limit = (weight.abs().amax(dim=1, keepdim=True) / 448).expand_as(weight), torch.full((8,), 448.0, dtype=torch.float64)
    codes, errors = Rounder(moments.clone(), fmt=FP8).candidates(weight, scale[None], limit)
    assert codes.dtype == grid.held(FP8)
    assert torch.equal(codes.double(), grid.nearest(codes.double(), FP8))
    assert torch.equal(codes[0].double(), nearest_codes(weight, scale, limit, FP8))
    assert float(errors[1].sum()) < 0.7 * float(errors[0].sum())
    measured = ((x @ (weight - scale * codes[1].double()).T) ** 2).mean(dim=0)
    torch.testing.assert_close(errors[1], measured, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layer", [
    QuantizedLinear(torch.randn(6, 40), torch.randn(6), FP8),
    QuantizedConv2d(torch.randn(6, 4, 3, 3), None, FP8, [1, 1], [1, 1], [1, 1], 1),
])  # fmt: skip
def test_a_layer_keeps_the_codes_that_it_is_given(layer: Any) -> None:
    scale = numerics.weight_scale(layer.weight.detach(), FP8) * 1.1
    codes = grid.nearest(layer.weight.detach() / numerics.per_channel(scale, layer.weight, 0) * 1.04, FP8)
    layer.set_codes(codes, scale)
    assert torch.equal(layer.integer_weight()[0], codes)
    rate = layer.parameter_groups(QuantizeConfig(lr_weight=1.0))[0]["lr"]  # of a step, as far as codes of such a range lie apart
    assert 2 * float(scale.mean()) < rate < 32 * float(scale.mean())
    layer.freeze()
    assert layer.frozen[0].dtype == torch.float8_e4m3fn
    assert torch.equal(layer.integer_weight()[0], codes)


def made(factory: pytest.TempPathFactory, name: str, model: Any, **options: Any) -> Checkpoint:
    return load_checkpoint(made_once(factory, name, lambda path: make_checkpoint(model, path, **{"dilation": None, **options})))


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return made(tmp_path_factory, "fp8-unet", tiny_unet(), preset="fp8")


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    options = {"conditions": {"class_labels": torch.arange(5)}, "max_float_share": 0.6, "activations": "per-token"}
    return made(tmp_path_factory, "w4a8-fp8-dit", tiny_dit(out_channels=1, num_layers=1), preset="w4a8-fp8", **options)


def test_weights_and_activations_of_a_unet_are_fp8_and_attention_stays_float(unet: Checkpoint) -> None:
    assert {type(layer).kind for layer in unet.layers.values()} == {"conv2d", "linear"}
    assert {layer.format for layer in unet.layers.values()} == {FP8}  # type: ignore[union-attr]
    assert all(q.format is FP8 and q.symmetric and not q.divides for q in unet.quantizers.values())
    assert [layer.op for layer in unet.details.float_layers if "attention stays one float kernel" in layer.reason] == ["matmul"] * 4
    assert {(layer.format, layer.weight_bits, layer.activation_bits) for layer in unet.details.layers} == {("fp8", 8, 8)}
    assert bits_label(unet.artifact) == "W8A8-FP8"
    tensors = {name for name in _tensors(unet) if name.endswith("zero_point")}
    assert tensors == set()
    assert min(unet.details.snr_db["after_distillation"]) > 14


def _tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(checkpoint.artifact.path / "model.safetensors")


def test_weights_of_four_bits_are_integers_beside_fp8(dit: Checkpoint) -> None:
    assert {layer.format.name for layer in dit.layers.values()} == {"INT4"}  # type: ignore[union-attr]
    assert "proj_out_2" in {layer.name for layer in dit.details.float_layers}
    assert {quantizer.format for quantizer in dit.quantizers.values()} == {FP8}
    assert bits_label(dit.artifact) == "W4A8-FP8"
    assert {name.rpartition(".")[2] for name in _tensors(dit) if "packed" in name} == {"packed_codes"}


def test_a_loaded_checkpoint_computes_with_stored_codes(unet: Checkpoint) -> None:
    stored = _tensors(unet)
    for name, layer in named_layers(unet.model):
        codes = stored[f"{name}.weight.codes"]
        assert codes.dtype == torch.float8_e4m3fn
        assert torch.equal(codes.float(), layer.integer_weight()[0])  # type: ignore[union-attr]
        assert float(codes.float().abs().max()) > 200  # ranges use the grid
    for name, quantizer in named_quantizers(unet.model):
        assert torch.equal(quantizer.scale_table()[:: (len(unet.table_timesteps) - 1) // 3], stored[f"{name}.scale"])


@pytest.mark.parametrize("preset", ["fp8", "w4a8-fp8"])
def test_distillation_trains_weights_and_tables(plain_graph: GraphModule, plain_data: Trajectories, preset: str) -> None:
    options = {**FAST, "preset": preset, "iterations": 20, "lr_weight": 0.1}
    quantized, _ = quantized_copy(plain_graph, plain_data, **options)
    before = {name: tensor.clone() for name, tensor in quantized.state_dict().items()}
    records = distill(plain_graph, quantized, plain_data, QuantizeConfig.build(**options))
    assert sum(record.after < record.before for record in records) >= len(records) / 2
    moved = {name.rpartition(".")[2] for name, tensor in quantized.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"weight", "log_scale"} <= moved
    tables = [name for name in before if name.startswith("quantizers.") and name.endswith("log_scale")]
    assert any(not torch.equal(before[name], quantized.state_dict()[name]) for name in tables)


def test_gptq_brings_a_network_nearer(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    options = {**FAST, "preset": "fp8", "rounding": "gptq"}
    quantized, _ = quantized_copy(plain_graph, plain_data, **options)
    records = round_weights(quantized, plain_data, QuantizeConfig.build(**options))
    assert {record.layer for record in records} == {name for name, layer in named_layers(quantized) if hasattr(layer, "weight")}
    assert all(record.error_ratio <= 1 for record in records)
    assert float(np.median([record.error_ratio for record in records])) < 0.9


@pytest.mark.parametrize(("options", "words"), [
    ({"weight_bits": 6}, "weight_bits is 6, and beside FP8 weights have 8 bits .FP8. or 2 to 4"),
    ({"activation_bits": 6}, "activation_bits is 6, and FP8 has 8"),
    ({"activation_bits": 16}, "activation_bits is 16, and FP8 has 8"),
    ({"softmax_bits": 4}, "softmax_bits would be ignored"),
    ({"keep": {"mid*": 7}, "weight_bits": 5}, r"weight_bits is 5, keep mid\* is 7"),
    ({"products": "fp9"}, "products: .*'fp9'"),
    ({"products": 8}, "products: "),
])  # fmt: skip
def test_options_that_fp8_cannot_have_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        QuantizeConfig.build("fp8", **options)


def test_nan_in_a_weight_and_in_an_activation_are_refused(tmp_path: Path) -> None:
    model = PlainUNet()
    with torch.no_grad():
        model.down.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ArtifactError, match=r"NaN or Inf in .* down\.weight"):
        make_checkpoint(model, tmp_path / "weight", preset="fp8", dilation=None)
    model = PlainUNet()
    with torch.no_grad():
        model.qkv.weight.mul_(1e30)
        model.out.weight.mul_(1e30)
    with pytest.raises(ArtifactError, match="NaN or Inf"):
        make_checkpoint(model, tmp_path / "activation", preset="fp8", dilation=None)


def _with_nan(tensors: dict[str, torch.Tensor], name: str) -> None:
    codes = tensors[name].view(torch.uint8).clone()
    codes.flatten()[0] = 0x7F  # E4M3's NaN
    tensors[name] = codes.view(torch.float8_e4m3fn)


def test_tampered_codes_are_refused(unet: Checkpoint, tmp_path: Path) -> None:
    name = "mid_block.resnets.0.conv1.weight.codes"
    changes = {
        "NaN or Inf in": lambda tensors: _with_nan(tensors, name),
        "not a table of float8_e4m3fn codes": lambda tensors: tensors.update({name: tensors[name].view(torch.int8)}),
        "FP8 has no zero-points": lambda tensors: tensors.update({f"{_first(tensors)}.zero_point": torch.zeros(4, dtype=torch.int8)}),
    }
    for index, (words, change) in enumerate(changes.items()):
        path = tmp_path / str(index)
        shutil.copytree(unet.artifact.path, path)
        with pytest.raises(ArtifactError, match=words):
            load_checkpoint(change_tensors(path, change))


def _first(tensors: dict[str, torch.Tensor]) -> str:
    return next(name.removesuffix(".scale") for name in sorted(tensors) if name.endswith(".input.scale"))
