"""``attention="float"``: q·kᵀ and P·v unquantized, everything else as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from dq_deploy.accuracy import check
from dq_deploy.artifacts.scale_tables import read_tables
from dq_deploy.errors import UsageError
from dq_deploy.exporters import TARGETS, export
from dq_deploy.exporters.attention import float_attention
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.tiny import run, snr_db


@pytest.mark.parametrize("target", TARGETS)
def test_the_products_are_float_and_the_bundle_is_judged_as_such(plain_checkpoint: Checkpoint, target: str, tmp_path: Path) -> None:
    made = export(plain_checkpoint.artifact, tmp_path / "bundle", target=target, dtype="fp32", attention="float")  # type: ignore[arg-type]
    details = made.manifest.details
    assert details["attention"] == "float"
    products = {"matmul", "matmul_1"}
    assert {layer.name for layer in plain_checkpoint.details.layers} - {layer["name"] for layer in details["layers"]} == products
    assert {layer["name"] for layer in details["float_layers"] if layer["reason"] == "export --attention float"} == products
    graph = onnx.load(made.path / "model.onnx").graph
    producers = {output: node.op_type for node in graph.node for output in node.output}
    floats = {node.name.partition("/")[0]: {producers.get(i) for i in node.input} for node in graph.node if node.op_type == "MatMul"}
    assert all("DequantizeLinear" not in floats[name] for name in products)
    if target == "qdq":
        assert floats["out"] == {"DequantizeLinear"}
    else:
        integers = {node.name.partition("/")[0] for node in graph.node if node.op_type == "MatMulInteger"}
        assert "out" in integers
        assert not products & integers
    assert not [name for name in read_tables(made) if name.startswith("matmul")]
    verdict = check(made, plain_checkpoint.artifact)
    assert verdict, verdict.failures
    assert {row.layer for row in verdict.layers} == {layer["name"] for layer in details["layers"]}


def test_the_reference_without_them_is_another_network(plain_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Else the comparison above would not tell the two apart."""
    made = export(plain_checkpoint.artifact, tmp_path / "bundle", target="qdq", dtype="fp32", attention="float")
    x, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.0, 400.0, 990.0])
    with torch.no_grad():
        own, quantized = float_attention(plain_checkpoint).model(x, t), plain_checkpoint.model(x, t)
    assert snr_db(own, run(made, x, t)) > 60
    assert snr_db(own, quantized) < 55


def test_an_unknown_choice(plain_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown attention 'bf16'"):
        export(plain_checkpoint.artifact, tmp_path / "bundle", target="qdq", attention="bf16")  # type: ignore[arg-type]


def test_low_rank_branches_are_float_by_design_and_no_part_of_the_share(plain_checkpoint: Checkpoint) -> None:
    share = float_attention(plain_checkpoint).artifact.manifest.details["float_mac_share"]
    artifact = plain_checkpoint.artifact
    branch = {"name": "mid_block.attentions.0.to_q#down", "op": "linear", "macs": 10**9, "reason": "a branch"}
    details = {**artifact.manifest.details, "float_layers": [*artifact.manifest.details["float_layers"], branch]}
    manifest = artifact.manifest.model_copy(update={"details": details})
    branched = replace(plain_checkpoint, artifact=replace(artifact, manifest=manifest))
    assert 0 < share < 1
    assert float_attention(branched).artifact.manifest.details["float_mac_share"] == share
