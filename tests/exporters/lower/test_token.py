"""A quantizer whose scales are computed for each token, lowered for both targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dq_deploy.formats import of_bits
from dq_deploy.quantization.quantizers import TokenQuantizer
from dq_deploy.quantization.quantizers.token import LEAST_LARGEST
from dq_deploy.quantization.weights import QuantizedLinear
from tests.exporters.lower.written import ASKED, TARGETS, TIMESTEPS, Written, agree, random

CHANNELS, OUTPUTS = 16, 6
RATIOS = [1.0, 0.5, 0.8]


def quantizer(ratios: list[float], *, bits: int = 8, dilated: bool = False, shifted: bool = False) -> TokenQuantizer:
    made = TokenQuantizer(TIMESTEPS, of_bits(bits), symmetric=not shifted, axis=-1, channels=CHANNELS)
    with torch.no_grad():
        made.shifted.fill_(shifted)
        made.log_ratio.copy_(torch.tensor(ratios).log()[:, None])
        if dilated:
            made.dilation.copy_(torch.linspace(1, 2, CHANNELS))
    made.freeze()
    return made


def layer(*, bias: bool = True) -> QuantizedLinear:
    made = QuantizedLinear(random(OUTPUTS, CHANNELS, seed=1), random(OUTPUTS, seed=2) if bias else None, of_bits(8))
    made.freeze()
    return made


def written(target: str, read: TokenQuantizer, made: QuantizedLinear, *tokens: int, static: bool = False) -> Written:
    shapes = [(*tokens, CHANNELS)]
    return Written(target, "Linear", shapes, (*tokens, OUTPUTS), layer=made, quantizers={"layer.input": read}, static=static)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tokens", [(), (5,), (2, 3)])
@pytest.mark.parametrize(("bits", "dilated", "bias"), [(8, False, True), (8, True, False), (4, True, True)])
def test_the_numbers_are_pytorchs(target: str, tokens: tuple[int, ...], bits: int, dilated: bool, bias: bool, tmp_path: Path) -> None:
    read, made = quantizer(RATIOS, bits=bits, dilated=dilated), layer(bias=bias)
    x = random(len(ASKED), *tokens, CHANNELS) * random(len(ASKED), *tokens, 1, seed=3).exp()
    graph = written(target, read, made, *tokens)
    agree(graph.run(tmp_path, ASKED, x), made(read(x, ASKED)))
    table = graph.constant("layer.input.relative_scale")
    np.testing.assert_array_equal(table, np.array(RATIOS, np.float32) / np.float32(of_bits(bits).largest))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tokens", [(), (5,), (2, 3)])
@pytest.mark.parametrize(("bits", "dilated", "bias"), [(8, False, True), (8, True, False), (4, True, True)])
def test_zero_points_are_pytorchs(target: str, tokens: tuple[int, ...], bits: int, dilated: bool, bias: bool, tmp_path: Path) -> None:
    """Of values on one side of 0, on the other, on both, and of a token of zeros."""
    read, made = quantizer(RATIOS, bits=bits, dilated=dilated, shifted=True), layer(bias=bias)
    x = random(len(ASKED), *tokens, CHANNELS) + 3 * random(len(ASKED), *tokens, 1, seed=3)
    x[0] = x[0].abs()
    x[-1].view(-1, CHANNELS)[0] = 0
    agree(written(target, read, made, *tokens).run(tmp_path, ASKED, x), made(read(x, ASKED)))


@pytest.mark.parametrize("target", TARGETS)
def test_ratios_that_are_all_alike_are_a_constant(target: str, tmp_path: Path) -> None:
    read, made, x = quantizer([1.0, 1.0, 1.0]), layer(), random(len(ASKED), 5, CHANNELS)
    graph = written(target, read, made, 5)
    agree(graph.run(tmp_path, ASKED, x), made(read(x, ASKED)))
    assert graph.constant("layer.input.relative_scale") == np.float32(1) / np.float32(127)
    assert "Gather" not in graph.ops("layer.input")


@pytest.mark.parametrize("target", TARGETS)
def test_a_token_of_zeros_gives_the_bias(target: str, tmp_path: Path) -> None:
    read, made, x = quantizer(RATIOS), layer(), random(len(ASKED), 5, CHANNELS)
    x[:, 2] = 0
    x[1, 3] = LEAST_LARGEST / 8
    got = written(target, read, made, 5).run(tmp_path, ASKED, x)
    assert made.bias is not None
    torch.testing.assert_close(got[:, 2], made.bias.expand(len(ASKED), -1))
    agree(got, made(read(x, ASKED)))


def test_one_row_serves_where_all_tables_are_static(tmp_path: Path) -> None:
    read, made, x = quantizer([0.7, 0.7, 0.7]), layer(), random(len(ASKED), 5, CHANNELS)
    for target in TARGETS:
        agree(written(target, read, made, 5, static=True).run(tmp_path, ASKED, x), made(read(x, ASKED)))


def test_the_operators_of_each_target() -> None:
    read, made = quantizer(RATIOS), layer()
    largest, rescaled = ["Abs", "ReduceMax", "Max"], ["Mul", "Reciprocal", "Mul", "QuantizeLinear"]
    tensorrt = written("qdq", read, made, 5)
    assert tensorrt.ops("layer.input/") == ["Unsqueeze", *largest, *rescaled, "DequantizeLinear"]
    assert tensorrt.ops() == ["DequantizeLinear", "MatMul", "Mul", "Add"]
    onnxruntime = written("onnxruntime", read, made, 5)
    assert onnxruntime.ops("layer.input/") == [*largest, *rescaled]
    assert onnxruntime.ops() == ["MatMulInteger", "Cast", "Mul", "Mul", "Mul", "Add"]
    assert [site["source"] for site in onnxruntime.sites.quantizers] == ["computed"]


def test_a_range_is_reduced_once_for_scale_and_zero_point() -> None:
    read, made = quantizer(RATIOS, shifted=True), layer()
    for target, sums in (("qdq", ["Mul", "Sub"]), ("onnxruntime", ["Mul", "Sub"])):
        graph = written(target, read, made, 5)
        operators = graph.ops("layer.input/")
        assert [operators.count(name) for name in ("ReduceMax", "ReduceMin", "Round")] == [1, 1, 2]
        assert sums[0] in graph.ops()
        assert sums[1] in graph.ops()
