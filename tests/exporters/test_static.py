"""A checkpoint with one static scale a layer: what a timestep would select is a constant of the graph, or the one row of a table."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from dq_deploy.engines.onnxruntime.runner import optimized_operators
from dq_deploy.exporters import TARGETS, export
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.nightly import mostly_nightly
from tests.tiny import WHOLE, PlainUNet, make_checkpoint, run, snr_db

CASES = {
    "zero-points": {},
    "symmetric": {"zero_points": False},
    "dilated, clipped": {"activation_bits": 6, "weight_bits": 4, "dilation": "symmetric"},
}


@pytest.fixture(scope="module", params=mostly_nightly(CASES, "dilated, clipped"))
def static(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(PlainUNet(), tmp_path_factory.mktemp("static") / "checkpoint", activations="static", **CASES[request.param])


@pytest.mark.parametrize("target", TARGETS)
def test_there_is_one_scale_and_the_numbers_are_pytorchs(static: Checkpoint, target: str, tmp_path: Path) -> None:
    made = export(static.artifact, tmp_path / "bundle", target=target, dtype="fp32", **WHOLE[target])
    graph = onnx.load(made.path / "model.onnx").graph
    scales = [i for i in graph.initializer if i.name.endswith((".input.scale", ".lhs.scale", ".rhs.scale"))]
    if target == "qdq":
        assert not [n.name for n in graph.node if n.op_type in ("Gather", "Reciprocal", "Greater") or "row_selection" in n.name]
        assert {tuple(i.dims) for i in scales} == {()}
    else:  # which fuses no product whose scales are constants; the probabilities' scale is one beside a gathered one
        assert {tuple(i.dims) for i in scales} == {(), (1,)}
        operators = optimized_operators(made.path / "model.onnx")
        assert operators.count("MatMulIntegerToFloat") == sum(n.op_type == "MatMulInteger" for n in graph.node) > 0
        assert "MatMulInteger" not in operators
    x = torch.randn(5, *static.details.sample_shape, generator=torch.Generator().manual_seed(5))
    t = torch.linspace(0, 999, 5)
    with torch.no_grad():
        assert snr_db(static.model(x, t), run(made, x, t)) > 60
