"""Kinds from outside of the package: registered here, lowered for both targets, and right when they run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from dq_deploy.exporters.emitter import number
from dq_deploy.exporters.lower import QuantizerPlace, scale
from dq_deploy.formats import INT8, ScaleSource
from dq_deploy.quantization.quantizers import Quantized
from dq_deploy.quantization.weights import QuantizedLinear
from tests.exporters.lower.written import ASKED, TARGETS, Written, agree, random

SHAPE, OUTPUTS = (5, 16), 6


class OneScale(nn.Module):
    """One constant scale, given at construction."""

    format, symmetric, axis, source = INT8, True, -1, ScaleSource.CONSTANT

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.dilation = value, torch.ones(1)

    def forward(self, x: torch.Tensor, _: torch.Tensor) -> Quantized:
        return Quantized((x / self.value).round().clamp(-128, 127), torch.full((len(x),), self.value))


@scale.register
def constant(quantizer: OneScale, at: QuantizerPlace) -> ir.Value:
    return number(f"{at.name}.scale", np.float32(quantizer.value))


class PerToken(OneScale):
    """A scale for each token, computed from it."""

    source = ScaleSource.COMPUTED

    def forward(self, x: torch.Tensor, _: torch.Tensor) -> Quantized:
        found = x.abs().amax(dim=-1, keepdim=True) * (self.value / 127)
        return Quantized((x * (1 / found)).round().clamp(-128, 127), found)


@scale.register
def computed(quantizer: PerToken, at: QuantizerPlace) -> ir.Value:
    size = at.emit.op("Abs", [at.x])
    size = at.emit.op("ReduceMax", [size, at.emit.constant("axes.last", np.array([-1]))], keepdims=1)
    found = at.emit.op("Mul", [size, number("step", np.float32(quantizer.value / 127))], name="scale")
    found.shape = ir.Shape(["batch", SHAPE[0], 1])
    return found


def layer() -> QuantizedLinear:
    made = QuantizedLinear(random(OUTPUTS, SHAPE[1], seed=1), random(OUTPUTS, seed=2), INT8)
    made.freeze()
    return made


def written(target: str, read: OneScale, made: QuantizedLinear) -> Written:
    return Written(target, "Linear", [SHAPE], (SHAPE[0], OUTPUTS), layer=made, quantizers={"layer.input": read})


@pytest.mark.parametrize("target", TARGETS)
def test_a_constant_scale(target: str, tmp_path: Path) -> None:
    read, made, x = OneScale(0.04), layer(), random(len(ASKED), *SHAPE)
    graph = written(target, read, made)
    agree(graph.run(tmp_path, ASKED, x), made(read(x, ASKED)))
    assert graph.constant("layer.input.scale") == np.float32(0.04)
    assert "Gather" not in graph.ops("")


def test_a_scale_for_each_token(tmp_path: Path) -> None:
    """Between Q/DQ with scale 1 it needs nothing of the target."""
    read, made, x = PerToken(1.0), layer(), random(len(ASKED), *SHAPE)
    codes, found = read(x, ASKED)
    expected = nn.functional.linear(codes, made.integer_weight()[0]) * (found * made.integer_weight()[1]) + made.bias
    agree(written("qdq", read, made).run(tmp_path, ASKED, x), expected)
    assert written("qdq", read, made).ops() == ["DequantizeLinear", "MatMul", "Mul", "Add"]
