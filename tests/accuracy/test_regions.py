"""A constant that the graph lost or changed is found where no reference sample needs it, and its node is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from dq_deploy.accuracy import check
from dq_deploy.accuracy.regions import region_parity
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.exporters import export
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.tiny import WHOLE, make_checkpoint, resealed


class Vanishing(nn.Module):
    """Its norm divides by nearly nothing only where all channels of a pixel are below 2, which they are not on the samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        nn.init.constant_(self.second.bias, 9.0)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.second(torch.sigmoid(self.first(x)) + 1e-3 * t.reshape(-1, 1, 1, 1)) - 2)
        h = h * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 1e-10)
        return self.last(h.clamp(min=-1e-12) * 0.5 + torch.where(h > 1e-9, h, h * 3))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(Vanishing(), tmp_path_factory.mktemp("regions") / "c", max_float_share=1, steps=2)


def changed(bundle: Artifact, before: float, after: float) -> Artifact:
    """The bundle with every scalar constant of this value, of any shape, as another."""
    path = bundle.path / "model.onnx"
    model = onnx.load(path)
    hits = 0
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size == 1 and array.dtype == np.float32 and np.isclose(array.item(), before, rtol=1e-6, atol=0):
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, after), tensor.name))
            hits += 1
    assert hits
    onnx.save(model, path)
    return open_artifact(resealed(bundle.path), "bundle")


@pytest.mark.parametrize(("target", "dtype"), [("qdq", "fp32"), ("qdq", "fp16"), ("onnxruntime", "fp32")])
def test_a_right_bundle_passes(checkpoint: Checkpoint, target: str, dtype: str, tmp_path: Path) -> None:
    bundle = export(checkpoint.artifact, tmp_path / "b", target=target, dtype=dtype, **WHOLE[target])
    result = check(bundle, checkpoint.artifact)
    assert result, result.failures
    assert result.regions


class Growing(nn.Module):
    """Its norm's squares fit into fp32, and four thousand times its input's do not: kernels differ in what they make of these."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x + 1e-3 * t.reshape(-1, 1, 1, 1)) * 1e16))


def test_what_no_kernel_can_square_is_not_judged(tmp_path: Path) -> None:
    made = make_checkpoint(Growing(), tmp_path / "c", max_float_share=1, steps=2)
    result = check(export(made.artifact, tmp_path / "b", target="qdq", dtype="fp32"), made.artifact)
    assert result, result.failures


@pytest.mark.parametrize(
    ("before", "after", "node"),
    [(1e-10, 0.0, "aten.add.Tensor(mean, 1e-10)"), (1e-10, 1e-9, "aten.add.Tensor(mean, 1e-10)"), (2.0, 1.9, "2)"), (0.5, 0.25, "0.5)")],
)
def test_a_lost_constant_is_found_and_named(checkpoint: Checkpoint, before: float, after: float, node: str, tmp_path: Path) -> None:
    bundle = changed(export(checkpoint.artifact, tmp_path / "b", target="qdq", dtype="fp32"), before, after)
    result = check(bundle, checkpoint.artifact, bisect=True)
    failed = [row for row in result.regions if not row.passed]
    assert failed
    assert node in (failed[0].node or "")
    assert any("the graph does not compute" in line and node in line for line in result.failures)
    if before == 1e-10:
        assert all(row.passed for row in [*result.layers, *result.timesteps])  # nothing else sees it
        assert [found.node for found in result.bisection.nodes] == [failed[0].node]


@pytest.mark.nightly
def test_the_built_in_graphs_pass(plain_checkpoint: Checkpoint, unet_checkpoint: Checkpoint, tmp_path: Path) -> None:
    for number, each in enumerate((plain_checkpoint, unet_checkpoint)):
        for dtype in ("fp32",) if each is plain_checkpoint else ("fp32", "fp16"):
            bundle = export(each.artifact, tmp_path / f"{number}{dtype}", target="qdq", dtype=dtype)
            rows = region_parity(bundle, each, each.reference())
            assert rows
            assert [row for row in rows if not row.passed] == []
    assert json.loads(rows[0].model_dump_json())


class Cancelled(nn.Module):
    """Beside what the timestep adds to a channel, fed large, the channel's own spread is lost in a mean of squares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.time, self.norm, self.rows = nn.Linear(4, 8), nn.GroupNorm(8, 8, eps=1e-5), nn.LayerNorm(8)
        nn.init.normal_(self.time.weight, std=4.0)
        for norm in (self.norm, self.rows):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        added = self.time((t[:, None] * torch.arange(1, 5) / 100).sin())
        h = self.second(self.norm(self.first(x) + added[:, :, None, None]))
        return self.last(self.rows((h + added[:, :, None, None]).movedim(1, -1)).movedim(-1, 1))


@pytest.fixture(scope="module")
def cancelled(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(Cancelled(), tmp_path_factory.mktemp("cancelled") / "c", max_float_share=1, steps=2)


@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
def test_a_variance_that_rounding_swallows_is_no_fault(cancelled: Checkpoint, target: str, tmp_path: Path) -> None:
    rows = region_parity(
        export(cancelled.artifact, tmp_path / "b", target=target, dtype="fp32", **WHOLE[target]), cancelled, cancelled.reference()
    )
    assert rows
    assert all(row.passed for row in rows), rows


def test_a_norm_with_another_epsilon_is_found(cancelled: Checkpoint, tmp_path: Path) -> None:
    bundle = export(cancelled.artifact, tmp_path / "b", target="qdq", dtype="fp32")
    model = onnx.load(bundle.path / "model.onnx")
    for node in model.graph.node:
        if node.op_type == "GroupNormalization":
            next(a for a in node.attribute if a.name == "epsilon").f = 1e-4
    onnx.save(model, bundle.path / "model.onnx")
    rows = region_parity(open_artifact(resealed(bundle.path), "bundle"), cancelled, cancelled.reference())
    failed = [row for row in rows if not row.passed]
    assert "group_norm" in str(failed[0].node)


class Rectified(nn.Module):
    """ELU and SELU, whose exp(x) − 1 loses all of a tiny x in ONNX Runtime and nothing in torch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.elu, self.selu = nn.ELU(), nn.SELU()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.last(self.selu(self.second(self.elu(self.first(x)) + t[:, None, None, None] / 1000)))


def test_an_exponential_that_one_is_taken_from_is_no_fault_and_another_one_is(tmp_path: Path) -> None:
    made = make_checkpoint(Rectified(), tmp_path / "c", max_float_share=1, steps=2)
    bundle = export(made.artifact, tmp_path / "b", target="qdq", dtype="fp32")
    rows = region_parity(bundle, made, made.reference())
    assert [row for row in rows if not row.passed] == []
    model = onnx.load(bundle.path / "model.onnx")
    (selu,) = (node for node in model.graph.node if node.op_type == "Selu")
    del selu.attribute[:]
    selu.attribute.append(onnx.helper.make_attribute("alpha", 1.674))  # of 1.67326
    onnx.save(model, bundle.path / "model.onnx")
    rows = region_parity(open_artifact(resealed(bundle.path), "bundle"), made, made.reference())
    assert "selu" in str(next(row for row in rows if not row.passed).node)
