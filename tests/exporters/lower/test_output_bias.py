from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dq_deploy.quantization.output_bias import OutputBias
from tests.exporters.lower.written import ASKED, TARGETS, TIMESTEPS, Written, agree, random

SHAPES = {"images": ((3, 8, 8), 1), "tokens": ((5, 3), 2)}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("static", [True, False])
def test_each_timesteps_own_row_is_taken_off(target: str, kind: str, static: bool, tmp_path: Path) -> None:
    shape, axis = SHAPES[kind]
    table = torch.arange(1.0, 4.0).expand(3, 3) if static else torch.arange(9.0).reshape(3, 3)
    correction = OutputBias(table, TIMESTEPS, axis)
    written = Written(target, "OutputBias", [shape], shape, correction=correction, static=static)
    x = random(len(ASKED), *shape)
    agree(written.run(tmp_path, ASKED, x), correction(x, ASKED))
    assert written.ops() == ["Sub"]
    assert written.ops("layer.table/") == ([] if static else ["Gather"])
    assert len(written.constant("layer.table")) == (1 if static else 3)
