from __future__ import annotations

from pathlib import Path

import pytest

from dq_deploy.formats import of_bits
from dq_deploy.quantization.weights import QuantizedConv2d
from tests.exporters.lower.written import ASKED, TARGETS, Written, agree, quantizer, random

CHANNELS, OUTPUTS = 4, 6
SHAPE = (CHANNELS, 8, 8)
CASES = {  # kernel, stride, padding, dilation, groups, size of the output
    "3×3": ((3, 3), [1, 1], [1, 1], [1, 1], 1, (8, 8)),
    "1×1": ((1, 1), [1, 1], [0, 0], [1, 1], 1, (8, 8)),
    "strided, padded unevenly": ((3, 1), [2, 2], [1, 0], [1, 1], 1, (4, 4)),
    "dilated, grouped": ((3, 3), [1, 1], [2, 2], [2, 2], 2, (8, 8)),
}


def layer(case: str, bits: int = 8) -> QuantizedConv2d:
    kernel, stride, padding, dilation, groups, _ = CASES[case]
    weight = random(OUTPUTS, CHANNELS // groups, *kernel, seed=1)
    made = QuantizedConv2d(weight, random(OUTPUTS, seed=2), of_bits(bits), stride, padding, dilation, groups)
    made.freeze()
    return made


def written(target: str, case: str, made: QuantizedConv2d, read: object, **options: bool) -> Written:
    geometry = {"strides": made.stride, "pads": [*made.padding, *made.padding], "dilations": made.dilation, "group": made.groups}
    size = (OUTPUTS, *CASES[case][-1])
    return Written(target, "Conv", [SHAPE], size, layer=made, quantizers={"layer.input": read}, geometry=geometry, **options)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bits", [8, 4])
def test_the_numbers_are_pytorchs(target: str, case: str, bits: int, tmp_path: Path) -> None:
    made, read = layer(case, bits), quantizer(bits, axis=1, channels=CHANNELS, dilated=True)
    x = random(len(ASKED), *SHAPE)
    agree(written(target, case, made, read).run(tmp_path, ASKED, x), made(read(x, ASKED)))


def test_padding_becomes_the_zero_point_before_q_and_dq() -> None:
    made = written("qdq", "3×3", layer("3×3"), quantizer(axis=1, channels=CHANNELS))
    assert made.node("layer/Conv").attributes["pads"].value == (0, 0, 0, 0)
    assert made.ops("layer.input#pad1x1x1x1/")[:1] == ["Pad"]
    assert made.sites.quantizers[0]["pads"] == [1, 1, 1, 1]
    symmetric = written("qdq", "3×3", layer("3×3"), quantizer(axis=1, channels=CHANNELS, symmetric=True))
    assert symmetric.node("layer/Conv").attributes["pads"].value == (1, 1, 1, 1)
    assert "Pad" not in symmetric.ops("")
    assert symmetric.sites.quantizers[0]["pads"] == []


def test_of_integers_it_multiplies_patches_and_puts_channels_first_again() -> None:
    made = written("onnxruntime", "3×3", layer("3×3"), quantizer(axis=1, channels=CHANNELS))
    assert made.ops() == ["MatMulInteger", "Cast", "Mul", "Mul", "Add", "Transpose"]
    assert made.ops("layer.input/patches_") == ["Transpose", "Pad", "Reshape", "Gather", "Reshape"]
    assert made.constant("layer.weight.codes").shape == (9 * CHANNELS, OUTPUTS)
    plain = written("onnxruntime", "1×1", layer("1×1"), quantizer(axis=1, channels=CHANNELS))
    assert plain.ops("layer.input/patches_") == ["Transpose"]


def test_four_bits_are_written_as_they_are() -> None:
    """How many layers unpack theirs together is another file's matter (``exporters/recast.py``)."""
    made = written("qdq", "3×3", layer("3×3", 4), quantizer(axis=1, channels=CHANNELS, symmetric=True))
    assert made.ops()[:2] == ["DequantizeLinear", "Conv"]
    stored = written("qdq", "3×3", layer("3×3", 4), quantizer(axis=1, channels=CHANNELS, symmetric=True), int4=False)
    assert stored.ops()[:2] == ["DequantizeLinear", "Conv"]
