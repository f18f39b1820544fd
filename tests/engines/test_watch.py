"""Watching a bundle: the same output, and counts that are those of numpy on the same codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.engines.dropin import load
from dq_deploy.errors import UsageError
from tests.command_line import Cli, assert_refused
from tests.flow import Flow, altered

GOLDEN = Path(__file__).parents[1] / "golden" / "schema-1" / "bundle"


@pytest.fixture
def golden() -> Artifact:
    return open_artifact(GOLDEN, "bundle")


def batch(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    sample = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * scale
    return sample, torch.tensor([0.0, 600.0, 0.0, 300.0])


def test_the_output_is_that_of_the_same_bundle_unwatched(golden: Artifact) -> None:
    watched, plain = load(golden, watch=True), load(golden, optimized=False)
    torch.testing.assert_close(watched(*batch()).sample, plain(*batch()).sample, rtol=0, atol=1e-6)
    rows = watched.watched()
    assert [(row.timestep, row.samples) for row in rows] == [(0.0, 2), (300.0, 1), (600.0, 1)]
    assert all(row.not_finite_share == 0 for row in rows)
    assert all(0 <= row.at_end_share <= row.worst_share <= 1 for row in rows)


def test_a_table_that_is_too_small_is_the_worst_quantizer(golden: Artifact, tmp_path: Path) -> None:
    def shrink(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == "last.input.scale")
        tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) / 16).astype(np.float32), tensor.name))

    shares = []
    for bundle in (golden, altered(golden, tmp_path / "b", shrink)):
        model = load(bundle, watch=True)
        model(*batch())
        shares.append([row.at_end_share for row in model.watched()])
    assert all(row.worst_quantizer == "last.input" and row.worst_share > 0.2 for row in model.watched())
    assert all(small > 2 * right for right, small in zip(*shares, strict=True))


def test_nan_is_found_at_its_timestep(golden: Artifact, tmp_path: Path) -> None:
    """A table with NaN in the row of one timestep, as a bad calibration leaves it."""

    def spoil(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == "last.input.scale")
        table = numpy_helper.to_array(tensor).copy()
        table.reshape(-1)[0] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(table, tensor.name))

    bundle = altered(golden, tmp_path / "b", spoil)
    model = load(bundle, watch=True)
    sample, _ = batch()
    steps = torch.tensor([bundle.manifest.timesteps[0], bundle.manifest.timesteps[-1]]).repeat(2)
    model(sample, steps)
    first, last = model.watched()
    assert first.not_finite_share == 1
    assert last.not_finite_share == 0


def test_nan_before_a_quantizer_is_counted_though_it_gives_a_code(golden: Artifact, tmp_path: Path) -> None:
    """A bias that is NaN in one of its channels: the next quantizer makes a code of it, and the output is finite."""

    def spoil(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == "up.bias")
        bias = numpy_helper.to_array(tensor).copy()
        bias.reshape(-1)[0] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))

    watched, spoiled = load(golden, watch=True), load(altered(golden, tmp_path / "b", spoil), watch=True)
    for model in (watched, spoiled):
        model(*batch())
    assert all((row.not_finite_inputs, row.first_not_finite) == (0, None) for row in watched.watched())
    for row in spoiled.watched():
        assert row.not_finite_share == 0
        assert row.not_finite_inputs == row.samples * 8 * 8
        assert row.first_not_finite == "last.input"


def test_a_sample_with_nan_is_counted_at_its_timestep_and_gives_nan(golden: Artifact) -> None:
    sample, steps = batch()
    sample[1, 0, 3, 3] = torch.nan
    model = load(golden, watch=True)
    output = model(sample, steps).sample
    assert output[1].isnan().all()
    assert output[[0, 2, 3]].isfinite().all()
    assert [row.not_finite_inputs > 0 for row in model.watched()] == [False, False, True]
    with pytest.raises(UsageError, match=r"input 'x' has 1 value that is not finite in float32, the first nan at \[1, 0, 3, 3\]"):
        load(golden)(sample, steps)
    with pytest.raises(UsageError, match="1 value that is not finite"):
        load(golden, watch=True, nonfinite="refuse")(sample, steps)


def test_what_cannot_be_watched(flow: Flow, golden: Artifact) -> None:
    with pytest.raises(UsageError, match="has no quantizers to watch"):
        load(flow.bundles["float"], watch=True)
    with pytest.raises(UsageError, match="only a bundle in onnxruntime can be watched"):
        load(golden, watch=True, runtime="openvino")
    with pytest.raises(UsageError, match="this model is not watched\nload it with watch=True"):
        load(golden).watched()


def test_sample_reports_what_it_has_watched(cli: Cli, flow: Flow, tmp_path: Path) -> None:
    bundle = flow.bundles["onnxruntime"]
    ended = cli("sample", bundle, "-n", 2, "-o", tmp_path / "a.png", "--no-compare-float", "--watch", "--format", "json")
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)["watched"]
    assert [row["timestep"] for row in rows] == flow.bundle("onnxruntime").manifest.timesteps
    assert {row["samples"] for row in rows} == {2}
    shown = cli("sample", bundle, "-n", 1, "-o", tmp_path / "b.png", "--no-compare-float", "--watch")
    assert "codes at an end" in shown.out
    assert_refused(cli("sample", flow.checkpoint, "-o", tmp_path / "c.png", "--watch", "--no-compare-float"), 2, "only a bundle")
