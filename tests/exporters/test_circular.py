"""Circular padding, which OpenVINO does not read, as slices that it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dq_deploy.accuracy import check
from dq_deploy.engines.dropin import load
from dq_deploy.exporters import export
from dq_deploy.exporters.circular import circular_pads
from tests.tiny import SHAPE, make_checkpoint, session

GRAPH = """<ir_version: 10, opset_import: ["": 21]>
pads (float[batch, 2, height, 5] x) => (float[batch, 2, taller, wider] y) {
    y = Pad<mode="wrap">(x, pads, , axes)
}"""


@pytest.mark.parametrize("pads", [(1, 2, 3, 0), (0, 2, 0, 1), (0, 0, 0, 0)])
def test_the_values_are_those_of_the_operator(pads: tuple[int, int, int, int], tmp_path: Path) -> None:
    model = onnx.parser.parse_model(GRAPH)
    for name, values in (("pads", pads), ("axes", (2, 3))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    written = ir.from_proto(model)
    circular_pads(written.graph)
    assert "Pad" not in {node.op_type for node in written.graph}
    ir.save(written, tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 5)).astype(np.float32)
    (got,) = session(tmp_path / "model.onnx").run(None, {"x": x})
    np.testing.assert_array_equal(got, np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), mode="wrap"))


class Seamless(nn.Module):
    """Whose pictures can be tiled: convolutions that pad circularly, one of them with another amount on each side."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        circular = {"padding": 1, "padding_mode": "circular"}
        self.first, self.last = nn.Conv2d(1, 8, 3, **circular), nn.Conv2d(8, 1, 3, **circular)  # type: ignore[arg-type]
        self.middle = nn.Conv2d(8, 8, (2, 4))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.first(x) + t[:, None, None, None] / 1000
        return self.last(F.silu(h + self.middle(F.pad(F.silu(h), (1, 2, 0, 1), mode="circular"))))


def test_a_seamless_network_runs_on_every_engine(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    checkpoint = make_checkpoint(Seamless(), tmp_path / "checkpoint", steps=2)
    bundle = export(checkpoint.artifact, tmp_path / "bundle", target="qdq", dtype="fp32")
    assert check(bundle, checkpoint.artifact, engines=["openvino"])
    half = export(checkpoint.artifact, tmp_path / "half", target="qdq")
    x, t = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.tensor([0.0, 500.0, 0.0])
    expected, got = load(bundle, runtime="openvino")(x, t).sample, load(half, runtime="onnxruntime")(x, t).sample
    assert (expected - got).abs().max() < 0.05 * expected.abs().max()
