"""GroupNormalization in the ``onnxruntime`` target: another operator, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from dq_deploy.exporters import export
from dq_deploy.exporters.group_norm import group_norms_by_instance
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.tiny import session

GRAPH = """<ir_version: 10, opset_import: ["": 21]>
norms (float[batch, 8, {sizes}] x) => (float[batch, 8, {sizes}] y) {{
    y = GroupNormalization<num_groups=2, epsilon=0.001>(x, scale, bias)
}}"""


@pytest.mark.parametrize("sizes", [(5,), (4, 6)])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_the_numbers_are_pytorchs(sizes: tuple[int, ...], mean: float, tmp_path: Path) -> None:
    """With a mean far from 0 too, where the operator's own definition has hardly a digit left."""
    model = onnx.parser.parse_model(GRAPH.format(sizes=", ".join(map(str, sizes))))
    random = np.random.default_rng(0)
    scale, bias = (random.standard_normal(8).astype(np.float32) for _ in range(2))
    model.graph.initializer.extend([onnx.numpy_helper.from_array(scale, "scale"), onnx.numpy_helper.from_array(bias, "bias")])
    written = ir.from_proto(model)
    group_norms_by_instance(written.graph)
    assert "GroupNormalization" not in {node.op_type for node in written.graph}
    onnx.checker.check_model(ir.to_proto(written), full_check=True)
    ir.save(written, tmp_path / "model.onnx")
    x = (random.standard_normal((3, 8, *sizes)) + mean).astype(np.float32)
    (got,) = session(tmp_path / "model.onnx").run(None, {"x": x})
    expected = torch.nn.functional.group_norm(
        torch.from_numpy(x).double(), 2, torch.tensor(scale).double(), torch.tensor(bias).double(), 0.001
    )
    assert np.abs(got - expected.numpy()).max() < 1e-6 * max(10.0, mean)


def test_norms_of_lists_and_of_pictures_share_a_scale() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    norms (float[batch, 8, 4, 6] x) => (float[batch, 8, 24] z) <int64[3] list = {0, 8, 24}> {
        y = GroupNormalization<num_groups=2>(x, scale, bias)
        rows = Reshape(y, list)
        z = GroupNormalization<num_groups=2>(rows, scale, bias)
    }"""
    model = onnx.parser.parse_model(text)
    ones = np.ones(8, np.float32)
    model.graph.initializer.extend([onnx.numpy_helper.from_array(ones, "scale"), onnx.numpy_helper.from_array(ones, "bias")])
    written = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    group_norms_by_instance(written.graph)
    onnx.checker.check_model(ir.to_proto(written), full_check=True)
    assert {"y", "z"} <= {value.name for node in written.graph for value in node.outputs}  # a manifest may name either


@pytest.mark.parametrize("sizes", ["height, width", "height, 4"])
def test_open_sizes_are_left_alone(sizes: str) -> None:
    model = ir.from_proto(onnx.parser.parse_model(GRAPH.format(sizes=sizes)))
    group_norms_by_instance(model.graph)
    assert [node.op_type for node in model.graph] == ["GroupNormalization"]


def test_the_float_baseline_has_them_too(unet_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Else a bundle would be compared with a slower float model than there is."""
    made = export(unet_checkpoint.artifact, tmp_path / "float", target="onnxruntime", float=True)
    operators = [node.op_type for node in onnx.load(made.path / "model.onnx").graph.node]
    assert "InstanceNormalization" in operators
    assert "GroupNormalization" not in operators
