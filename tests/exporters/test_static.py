"""A checkpoint with one static scale a layer: what a timestep would select is a constant of the graph."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from dq_deploy.exporters import TARGETS, export
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.tiny import PlainUNet, make_checkpoint, run, snr_db

CASES = {
    "zero-points": {},
    "symmetric": {"zero_points": False},
    "dilated, clipped": {"activation_bits": 6, "weight_bits": 4, "dilation": "symmetric"},
}


@pytest.fixture(scope="module", params=CASES)
def static(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(PlainUNet(), tmp_path_factory.mktemp("static") / "checkpoint", temporal=False, **CASES[request.param])


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_gathered_and_the_numbers_are_pytorchs(static: Checkpoint, target: str, tmp_path: Path) -> None:
    made = export(static.artifact, tmp_path / "bundle", target=target, dtype="fp32")
    graph = onnx.load(made.path / "model.onnx").graph
    assert not [n.name for n in graph.node if n.op_type in ("Gather", "Reciprocal", "Greater") or "row_selection" in n.name]
    scales = [i for i in graph.initializer if i.name.endswith((".input.scale", ".lhs.scale", ".rhs.scale"))]
    assert {tuple(i.dims) for i in scales} == {()}
    x = torch.randn(5, *static.details["sample_shape"], generator=torch.Generator().manual_seed(5))
    t = torch.linspace(0, 999, 5)
    with torch.no_grad():
        assert snr_db(static.model(x, t), run(made, x, t)) > 60
