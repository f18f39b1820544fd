from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.exporters.lower.written import ASKED, TARGETS, Written, agree, random


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(target: str, bias: bool, tmp_path: Path) -> None:
    weight, x = random(6, 16, seed=1), random(len(ASKED), 5, 16)
    parameters = [weight, *([random(6, seed=2)] if bias else [])]
    written = Written(target, "Linear", [(5, 16)], (5, 6), parameters=parameters)
    agree(written.run(tmp_path, ASKED, x), F.linear(x, *parameters))
    assert written.ops() == ["MatMul", "Add"][: 1 + bias]


@pytest.mark.parametrize("target", TARGETS)
def test_conv(target: str, tmp_path: Path) -> None:
    weight, bias, x = random(6, 2, 3, 3, seed=1), random(6, seed=2), random(len(ASKED), 4, 8, 8)
    geometry = {"strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 2}
    written = Written(target, "Conv", [(4, 8, 8)], (6, 4, 4), parameters=[weight, bias], geometry=geometry)
    agree(written.run(tmp_path, ASKED, x), F.conv2d(x, weight, bias, stride=2, padding=1, groups=2))
    assert written.ops() == ["Conv"]


@pytest.mark.parametrize("target", TARGETS)
def test_matmul(target: str, tmp_path: Path) -> None:
    a, b = random(len(ASKED), 5, 7), random(len(ASKED), 7, 3, seed=1)
    written = Written(target, "MatMul", [(5, 7), (7, 3)], (5, 3))
    agree(written.run(tmp_path, ASKED, a, b), torch.matmul(a, b))
    assert not written.node("layer/MatMul").metadata_props  # no scale arithmetic
    assert written.sites.layers == {}
