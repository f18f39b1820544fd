from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dq_deploy.formats import of_bits
from dq_deploy.quantization.weights import QuantizedLinear
from tests.exporters.lower.written import ASKED, TARGETS, Written, agree, quantizer, random

SHAPE, OUTPUTS = (5, 16), 6


def layer(bits: int = 8, *, bias: bool = True) -> QuantizedLinear:
    made = QuantizedLinear(random(OUTPUTS, SHAPE[1], seed=1), random(OUTPUTS, seed=2) if bias else None, of_bits(bits))
    made.freeze()
    return made


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_the_numbers_are_pytorchs(target: str, symmetric: bool, bits: int, bias: bool, tmp_path: Path) -> None:
    read = quantizer(bits, symmetric=symmetric, channels=SHAPE[1], dilated=not symmetric)
    made = layer(bits, bias=bias)
    written = Written(target, "Linear", [SHAPE], (SHAPE[0], OUTPUTS), layer=made, quantizers={"layer.input": read})
    x = random(len(ASKED), *SHAPE)
    agree(written.run(tmp_path, ASKED, x), made(read(x, ASKED)))
    assert written.sites.layers == {"layer": "y"}  # the graph's output, whose name stays
    assert written.sites.inputs == {}


def test_between_q_and_dq_it_is_a_matmul_that_is_scaled_afterwards() -> None:
    read = quantizer(channels=SHAPE[1])
    written = Written("qdq", "Linear", [SHAPE], (SHAPE[0], OUTPUTS), layer=layer(), quantizers={"layer.input": read})
    assert written.ops() == ["DequantizeLinear", "MatMul", "Unsqueeze", "Mul", "Sub", "Unsqueeze", "Mul", "Add"]
    assert written.constant("layer.weight.codes").shape == (SHAPE[1], OUTPUTS)
    symmetric = quantizer(channels=SHAPE[1], symmetric=True)
    written = Written("qdq", "Linear", [SHAPE], (SHAPE[0], OUTPUTS), layer=layer(bias=False), quantizers={"layer.input": symmetric})
    assert written.ops() == ["DequantizeLinear", "MatMul", "Unsqueeze", "Mul"]


@pytest.mark.parametrize(("int4", "stored"), [(True, "INT4"), (False, "INT8")])
def test_four_bits_are_stored_in_half_a_byte_where_that_is_asked_for(int4: bool, stored: str) -> None:
    read = quantizer(channels=SHAPE[1])
    written = Written("qdq", "Linear", [SHAPE], (SHAPE[0], OUTPUTS), layer=layer(4), quantizers={"layer.input": read}, int4=int4)
    assert str(written.model.graph.initializers["layer.weight.codes"].dtype) == stored


def test_of_integers_it_is_what_onnxruntime_fuses() -> None:
    read = quantizer(channels=SHAPE[1])
    written = Written("onnxruntime", "Linear", [SHAPE], (SHAPE[0], OUTPUTS), layer=layer(), quantizers={"layer.input": read})
    assert written.ops() == ["MatMulInteger", "Cast", "Mul", "Mul", "Add"]
    codes, weight, zero_point = written.node("layer/MatMulInteger").inputs
    assert [str(value.dtype) for value in (codes, weight, zero_point) if value is not None] == ["UINT8", "INT8", "UINT8"]
    assert torch.equal(torch.from_numpy(written.constant("layer.input.zero_point")).int(), torch.tensor([121, 131, 134]).int())
