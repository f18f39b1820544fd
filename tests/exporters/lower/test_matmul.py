from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dq_deploy.quantization.weights import QuantizedMatmul
from tests.exporters.lower.written import ASKED, TARGETS, Written, agree, probabilities, quantizer, random

LEFT, RIGHT, OUTPUT = (5, 7), (7, 3), (5, 3)


def written(target: str, left: object, **options: bool) -> Written:
    read = {"layer.lhs": left, "layer.rhs": quantizer(symmetric=True, axis=0)}
    return Written(target, "MatMul", [LEFT, RIGHT], OUTPUT, layer=QuantizedMatmul(), quantizers=read, **options)


@pytest.mark.parametrize("target", TARGETS)
def test_two_tables(target: str, tmp_path: Path) -> None:
    left, right = quantizer(symmetric=True, axis=0), quantizer(symmetric=True, axis=0)
    a, b = random(len(ASKED), *LEFT), random(len(ASKED), *RIGHT, seed=1)
    agree(written(target, left).run(tmp_path, ASKED, a, b), QuantizedMatmul()(left(a, ASKED), right(b, ASKED)))


@pytest.mark.parametrize("target", TARGETS)
def test_probabilities(target: str, tmp_path: Path) -> None:
    left, right = probabilities(), quantizer(symmetric=True, axis=0)
    a, b = torch.softmax(3 * random(len(ASKED), *LEFT), dim=-1), random(len(ASKED), *RIGHT, seed=1)
    agree(written(target, left).run(tmp_path, ASKED, a, b), QuantizedMatmul()(left(a, ASKED), right(b, ASKED)))


def test_a_zero_point_is_corrected_by_the_right_sides_column_sums() -> None:
    assert written("qdq", quantizer(symmetric=True, axis=0)).ops() == ["MatMul", "Mul", "Unsqueeze", "Mul"]
    made = written("qdq", probabilities())
    assert made.ops("layer_correction/") == ["ReduceSum", "Mul"]
    assert "Sub" in made.ops()
    assert made.constant("layer.lhs.scale").shape == ()


def test_of_integers_the_right_side_is_int8_without_a_zero_point() -> None:
    made = written("onnxruntime", probabilities())
    left, right, *zero_points = made.node("layer/MatMulInteger").inputs
    assert left is not None
    assert right is not None
    assert (str(left.dtype), str(right.dtype)) == ("UINT8", "INT8")
    assert [value.name for value in zero_points if value is not None] == ["layer.lhs.zero_point"]
    assert made.constant("layer.lhs.zero_point") == 0  # of code −128


@pytest.mark.parametrize("target", TARGETS)
def test_static_tables(target: str, tmp_path: Path) -> None:
    """A constant for TensorRT; for ONNX Runtime, which fuses nothing with constants, a table of one row."""
    left, right = quantizer(symmetric=True, axis=0), quantizer(symmetric=True, axis=0)
    for read in (left, right):
        read.frozen_scale = torch.full((3,), 0.05)
    options = {"layer.lhs": left, "layer.rhs": right}
    made = Written(target, "MatMul", [LEFT, RIGHT], OUTPUT, layer=QuantizedMatmul(), quantizers=options, static=True)
    a, b = random(len(ASKED), *LEFT), random(len(ASKED), *RIGHT, seed=1)
    agree(made.run(tmp_path, ASKED, a, b), QuantizedMatmul()(left(a, ASKED), right(b, ASKED)))
    assert made.ops("layer.lhs.scale/") == ([] if target == "qdq" else ["Gather"])
    if target == "qdq":
        assert made.ops() == ["MatMul", "Mul"]
        assert made.constant("layer.scales") == torch.tensor(0.05).square().numpy()
