from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dq_deploy.formats.number import INT4
from dq_deploy.quantization.weights import WeightOnlyConv2d, WeightOnlyLinear
from tests.exporters.lower.written import ASKED, TARGETS, Written, agree, random

TOKENS, IMAGE = (5, 64), (4, 8, 8)


def linear(block: int, *, bias: bool = True) -> WeightOnlyLinear:
    made = WeightOnlyLinear(random(6, 64, seed=1), random(6, seed=2) if bias else None, INT4, block)
    made.freeze()
    return made


def conv(*, bias: bool = True) -> WeightOnlyConv2d:
    made = WeightOnlyConv2d(random(6, 2, 3, 3, seed=1), random(6, seed=2) if bias else None, INT4, [2, 2], [1, 1], [1, 1], 2)
    made.freeze()
    return made


def written_linear(target: str, made: WeightOnlyLinear, **options: bool) -> Written:
    return Written(target, "Linear", [TOKENS], (5, 6), layer=made, **options)


def written_conv(target: str, made: WeightOnlyConv2d, **options: bool) -> Written:
    geometry = {"strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 2}
    return Written(target, "Conv", [IMAGE], (6, 4, 4), layer=made, geometry=geometry, **options)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("int4", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_numbers_are_pytorchs(target: str, int4: bool, bias: bool, tmp_path: Path) -> None:
    for block in (0, 32):
        made = linear(block, bias=bias)
        x = random(len(ASKED), *TOKENS)
        agree(written_linear(target, made, int4=int4).run(tmp_path, ASKED, x), made(x))
    folded = conv(bias=bias)
    x = random(len(ASKED), *IMAGE)
    written = written_conv(target, folded, int4=int4)
    agree(written.run(tmp_path, ASKED, x), folded(x))
    assert str(written.model.graph.initializers["layer.weight.codes"].dtype) == ("INT4" if int4 else "INT8")
    assert written.sites.inputs == {"layer": "x0"}
    assert written.sites.quantizers == []


@pytest.mark.parametrize("target", TARGETS)
def test_a_linear_layer_has_a_scale_for_each_block(target: str) -> None:
    written = written_linear(target, linear(32))
    assert written.ops() == ["DequantizeLinear", "MatMul", "Add"]
    assert written.node("layer/DequantizeWeight").attributes["block_size"].value == 32
    assert written.constant("layer.weight.scale").shape == (2, 6)
    whole = written_linear(target, linear(0))
    assert "block_size" not in whole.node("layer/DequantizeWeight").attributes
    assert whole.constant("layer.weight.scale").shape == (6,)


def test_a_convolution_is_unpacked_by_what_the_engine_folds() -> None:
    assert written_conv("qdq", conv()).ops() == ["DequantizeLinear", "Conv"]
    assert written_conv("onnxruntime", conv()).ops() == ["Cast", "Mul", "Conv"]


def test_its_nodes_take_the_type_of_what_is_not_quantized() -> None:
    """They have no mark of scale arithmetic."""
    for written in (written_linear("qdq", linear(32)), written_conv("qdq", conv())):
        assert not any(node.metadata_props for node in written.model.graph if str(node.name).startswith("layer/"))
    assert torch.equal(linear(32).frozen[1], linear(32).frozen[1].half().float())  # type: ignore[index]  # scales that fp16 has
