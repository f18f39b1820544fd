"""Folded dilations through the whole stage: quantize, manifest, checkpoint, both graphs, check."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from dq_deploy.accuracy import check
from dq_deploy.exporters import export
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.nightly import mostly_nightly
from tests.quantization.test_fold import CONDITIONS, tiny_dit, tiny_text_unet
from tests.tiny import WHOLE, make_checkpoint


@pytest.fixture(scope="module", params=mostly_nightly(["text", "dit"], "text"))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model = tiny_text_unet() if request.param == "text" else tiny_dit()
    return make_checkpoint(
        model, tmp_path_factory.mktemp("fold") / "checkpoint", dilation="symmetric", conditions=CONDITIONS[request.param], steps=2
    )


def test_the_manifest_says_where_every_dilation_went(checkpoint: Checkpoint) -> None:
    names = {*checkpoint.layers, *(name for name, _ in checkpoint.model.named_buffers())}
    records = {r.quantizer: r for r in checkpoint.details.dilation}
    folded = {name for name, r in records.items() if r.folded_into}
    assert folded
    assert all(set(records[name].folded_into) <= names for name in folded)
    for name, quantizer in checkpoint.quantizers.items():
        multiplies = bool((quantizer.dilation != 1).any())
        dilated = name in records and records[name].dilated_share > 0
        assert multiplies == (dilated and name not in folded), name


@pytest.mark.parametrize("target", mostly_nightly(["qdq", "onnxruntime"], "qdq"))
def test_the_graph_multiplies_only_for_what_could_not_be_folded(checkpoint: Checkpoint, target: str, tmp_path: Path) -> None:
    bundle = export(checkpoint.artifact, tmp_path / "bundle", target=target, dtype="fp32", **WHOLE[target])  # type: ignore[arg-type]
    nodes = onnx.load(bundle.path / "model.onnx").graph.node
    multiplied = {node.name.removesuffix("/dilate").split("#pad")[0] for node in nodes if node.name.endswith("/dilate")}
    assert multiplied == {name for name, q in checkpoint.quantizers.items() if bool((q.dilation != 1).any())}
    verdict = check(bundle, checkpoint.artifact, optimized=False)
    assert not [row for row in verdict.layers if not row.passed]
    assert verdict, verdict.failures
