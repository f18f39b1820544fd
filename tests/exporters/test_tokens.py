"""A transformer whose linear layers have a scale for each token: both targets and OpenVINO agree with it, and wrong numbers are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from dq_deploy.accuracy import check
from dq_deploy.accuracy.local import local_parity
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.scale_tables import read_tables
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.dropin import load
from dq_deploy.engines.onnxruntime.runner import optimized_operators
from dq_deploy.engines.openvino.int8_kernels import int8_serves
from dq_deploy.exporters import export
from dq_deploy.exporters.lint import lint
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.quantization.quantizers import TokenQuantizer
from tests.command_line import Cli
from tests.flow import altered
from tests.shared import made_once
from tests.tiny import FAST, change_tensors, make_checkpoint
from tests.tiny_pipelines import tiny_dit

LAYER = "transformer_blocks.0.attn1.to_q"
RATIOS = torch.tensor([1.0, 0.9, 0.8, 0.6])
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A little trained, some tokens with zero-points; in one quantizer the clipping ratios differ a lot by timestep."""

    def make(path: Path) -> None:
        options = FAST | {"activations": "per-token", "conditions": {"class_labels": torch.arange(5)}, "max_float_share": 0.6}
        options |= {"iterations": 4}
        make_checkpoint(tiny_dit(out_channels=1, num_layers=1), path, **options)
        change_tensors(path, lambda t: t.update({f"{LAYER}.input.clipping_ratio": RATIOS}))

    return load_checkpoint(made_once(tmp_path_factory, "tokens", make))


@pytest.fixture(scope="module", params=[("qdq", "fp32"), ("qdq", "fp16"), ("onnxruntime", "fp32")], ids="-".join)
def bundle(request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _exported(checkpoint, tmp_path_factory, *request.param)


def _exported(checkpoint: Checkpoint, factory: pytest.TempPathFactory, target: str, dtype: str) -> Artifact:
    name = f"tokens-{target}-{dtype}"
    return open_artifact(made_once(factory, name, lambda path: export(checkpoint.artifact, path, target=target, dtype=dtype)), "bundle")


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _exported(checkpoint, tmp_path_factory, "qdq", "fp32")


def test_a_bundle_agrees_with_the_checkpoint(bundle: Artifact, checkpoint: Checkpoint) -> None:
    result = check(bundle, checkpoint.artifact)
    assert result.failures == []
    assert not [finding for finding in lint(bundle).findings if finding.severity == "error"]


def test_tokens_have_zero_points_where_values_lean_to_one_side(checkpoint: Checkpoint, bundle: Artifact) -> None:
    shifted = {entry.name for entry in checkpoint.details.quantizers if entry.zero_points}
    assert shifted == {name for name, made in checkpoint.quantizers.items() if isinstance(made, TokenQuantizer) and not made.symmetric}
    assert any(".ff.net.2." in name for name in shifted)  # behind a GELU
    assert {site.name for site in bundle.details.quantizers if site.zero_points} == shifted
    assert f"{len(shifted)} with zero-points" in checkpoint.details.per_token


def test_scales_are_fp32_whatever_the_rest_is(bundle: Artifact) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle.path / "model.onnx"))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    made = [name for node in model.graph.node if node.name.startswith(f"{LAYER}.input/") for name in node.output]
    found = {types[name] for name in made if not name.endswith(("QuantizeLinear:0", "to_float:0"))}
    assert found == {onnx.TensorProto.FLOAT}


def test_onnx_runtime_multiplies_integers(bundle: Artifact, checkpoint: Checkpoint) -> None:
    """All products in a bundle for it; in another those of several rows."""
    operators = optimized_operators(bundle.path / "model.onnx")
    layers = [layer for layer in checkpoint.details.layers if bundle.details.target == "onnxruntime" or ".ff." in layer.name]
    assert operators.count("MatMulIntegerToFloat") >= len(layers) > 1


def test_openvino_multiplies_integers_and_agrees(plain: Artifact, checkpoint: Checkpoint, tmp_path: Path) -> None:
    engine = build_engine(plain, tmp_path / "engine", backend="openvino", batch=(1, 2, 2))
    report = json.loads(next(engine.path.glob("layers*.json")).read_text())
    planned = {layer.name for layer in checkpoint.details.layers}
    found = {entry["name"]: entry["precision"] for entry in report["layers"] if entry["name"] in planned}
    assert set(found) == planned
    if int8_serves(without_vnni=False):
        assert set(found.values()) == {"int8"}
    assert check(engine, checkpoint.artifact).failures == []


def _constant(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor)), name))

    return change


def _without_least(model: onnx.ModelProto) -> None:
    """A token's range without what is below 0."""
    (node,) = (n for n in model.graph.node if n.name == f"{LAYER}.input/range")
    node.input[1] = "dq_deploy.none"


def _without_zero_point(model: onnx.ModelProto) -> None:
    """Codes that 0 has no place of its own in, and what is taken off the product likewise."""
    (node,) = (n for n in model.graph.node if n.name == f"{LAYER}.input/place")
    node.input[1] = "dq_deploy.none"


def _over_tokens(model: onnx.ModelProto) -> None:
    """The largest of each channel, where each token should have its own: there are as many."""
    (node,) = (n for n in model.graph.node if n.name == f"{LAYER}.input/ReduceMax")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axis_of_tokens"))
    (largest,), node.output[0], node.input[1] = list(node.output), "largest_of_channels", "axis_of_tokens"
    turned = helper.make_node("Transpose", ["largest_of_channels"], [largest], perm=[0, 2, 1])
    model.graph.node.insert(list(model.graph.node).index(node) + 1, turned)


def _neighbours(model: onnx.ModelProto) -> None:
    """Each token by its neighbour's scale."""
    (node,) = (n for n in model.graph.node if n.name == f"{LAYER}.input/Max")
    model.graph.initializer.append(numpy_helper.from_array(np.roll(np.arange(16), 1), "neighbours"))
    rolled = helper.make_node("Gather", [node.input[0], "neighbours"], ["rolled"], axis=1)
    model.graph.node.insert(list(model.graph.node).index(node), rolled)
    node.input[0] = "rolled"


@pytest.mark.parametrize("change", [
    _constant(f"{LAYER}.input.relative_scale", lambda table: np.roll(table, 4)),
    _constant(f"{LAYER}.input.relative_scale", lambda table: np.full_like(table, table[0])),
    _over_tokens, _without_least, _without_zero_point, _neighbours,
], ids=["another row", "row of another timestep", "another axis", "no low end", "no zero-point", "the neighbour's scale"])  # fmt: skip
def test_a_wrong_scale_fails_the_check(plain: Artifact, checkpoint: Checkpoint, tmp_path: Path, change: Change) -> None:
    wrong = altered(plain, tmp_path / "bundle", change)
    failed = {row.layer for row in local_parity(wrong, checkpoint, checkpoint.reference()) if not row.passed}
    assert failed == {LAYER, LAYER.replace("to_q", "to_k"), LAYER.replace("to_q", "to_v")}


def test_a_wrong_row_between_the_calibrated_ones_is_found_too(plain: Artifact, checkpoint: Checkpoint, tmp_path: Path) -> None:
    def between(table: np.ndarray) -> np.ndarray:
        changed = table.copy()
        changed[5] *= 1.01
        return changed

    wrong = altered(plain, tmp_path / "bundle", _constant(f"{LAYER}.input.relative_scale", between))
    assert any("1 of 13 rows" in failure for failure in check(wrong, checkpoint.artifact, optimized=False).failures)


def test_inspect_shows_the_clipping_ratios(bundle: Artifact, checkpoint: Checkpoint, cli: Cli) -> None:
    for made in (checkpoint.artifact, bundle):
        tables = read_tables(made)
        assert tables[f"{LAYER}.input"].per_token
        assert tables[f"{LAYER}.input"].scales == pytest.approx(RATIOS.tolist(), rel=1e-6)
        assert "clipping ratio" in cli("inspect", made.path, "--layer", LAYER).out
        (found,) = json.loads(cli("inspect", made.path, "--layer", LAYER, "--format", "json").out)["scale_tables"].values()
        assert found["per_token"] is True


def test_watch_looks_at_what_comes_in_and_counts_no_codes(plain: Artifact) -> None:
    model = load(plain, watch=True)
    sample = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model(sample * 1e6, torch.tensor([0.0, 750.0]), class_labels=torch.tensor([0, 1]))
    sample[0] = torch.nan
    model(sample, torch.tensor([250.0, 250.0]), class_labels=torch.tensor([0, 1]))
    rows = model.watched()
    computed = {name for name, table in read_tables(plain).items() if table.per_token}
    assert not {row.worst_quantizer for row in rows} & computed
    assert rows[1].not_finite_inputs > 0


def test_a_graph_with_a_ratio_of_zero_is_refused_by_lint(plain: Artifact, tmp_path: Path) -> None:
    def spoil(table: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(table)) == 2, 0, table).astype(np.float32)

    wrong = altered(plain, tmp_path / "bundle", _constant(f"{LAYER}.input.relative_scale", spoil))
    (found,) = (finding for finding in lint(wrong).findings if finding.rule == "zero-scale")
    assert "relative_scale" in found.node
