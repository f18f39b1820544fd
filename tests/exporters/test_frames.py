"""Frames in the batch: a frame's row of the tables is its sample's, in PyTorch, in both graphs and in OpenVINO."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from dq_deploy.accuracy import check
from dq_deploy.accuracy.layer_error import layer_errors
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.engines.openvino.int8_kernels import int8_serves
from dq_deploy.errors import ArtifactError
from dq_deploy.exporters import export
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from tests.command_line import Cli
from tests.shared import made_once
from tests.tiny import WHOLE, captured, make_checkpoint, resealed, run, snr_db
from tests.videos import FRAMES, SHAPE, VideoUNet

FOLDED = ("frame", "spatial", "between", "last")
TARGETS = ("qdq", "onnxruntime")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Dilated, rounded by GPTQ and trained a little: whatever reads an activation has met its frames."""
    options = {"dilation": "auto", "rounding": "gptq", "iterations": 2, "calibration_samples": 4}
    path = made_once(tmp_path_factory, "frames", lambda path: make_checkpoint(VideoUNet(), path, shape=SHAPE, **options))
    return load_checkpoint(path)


@pytest.fixture(scope="module", params=TARGETS)
def bundle(request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    target = request.param
    made = made_once(
        tmp_path_factory, f"frames-{target}", lambda path: export(checkpoint.artifact, path, target=target, dtype="fp32", **WHOLE[target])
    )
    return open_artifact(made, "bundle")


def test_every_layer_but_the_first_is_quantized(checkpoint: Checkpoint) -> None:
    assert [layer.name for layer in checkpoint.details.float_layers] == ["first"]
    frames = {name.removesuffix(".input"): quantizer.frames for name, quantizer in checkpoint.quantizers.items()}
    assert {name for name, count in frames.items() if count == FRAMES} == set(FOLDED)
    assert {frames[name] for name in frames.keys() - set(FOLDED)} == {1}


def test_every_stage_has_seen_the_frames(checkpoint: Checkpoint) -> None:
    details = checkpoint.details
    assert {entry.layer for entry in details.rounding} >= set(FOLDED)
    assert {entry.quantizer.removesuffix(".input") for entry in details.dilation} >= set(FOLDED)
    assert min(details.snr_db["after_distillation"]) > 15
    errors = layer_errors(checkpoint, graph=captured(VideoUNet().eval(), SHAPE))
    figures = [value for name in FOLDED for value in errors.output_db[name]]
    assert all(value is not None and value > 10 for value in figures)


def test_both_graphs_agree_with_the_checkpoint(bundle: Artifact, checkpoint: Checkpoint) -> None:
    assert check(bundle, checkpoint.artifact).failures == []


def mixed() -> tuple[torch.Tensor, torch.Tensor]:
    """Videos at timesteps that are far apart."""
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(7)), torch.tensor([0.0, 250.0, 750.0])


def test_samples_of_one_batch_may_have_other_timesteps(bundle: Artifact, checkpoint: Checkpoint) -> None:
    x, timestep = mixed()
    with torch.no_grad():
        expected = checkpoint.model(x, timestep)
        alone = torch.cat([checkpoint.model(x[i : i + 1], timestep[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(expected, alone, rtol=1e-3, atol=1e-4)
    assert snr_db(expected, run(bundle, x, timestep)) > 45


def test_rows_that_alternate_are_found(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Rows of the samples in turn, where each sample's should be repeated: as long, and wrong where timesteps are mixed."""
    path = export(checkpoint.artifact, tmp_path / "bundle", target="qdq", dtype="fp32").path / "model.onnx"
    model = onnx.load(path)
    (unsqueeze,) = (n for n in model.graph.node if n.name == f"row_selection_{FRAMES}_frames/Unsqueeze")
    (expand,) = (n for n in model.graph.node if n.name == f"row_selection_{FRAMES}_frames/Expand")
    model.graph.initializer.extend([
        numpy_helper.from_array(np.array([0], np.int64), "in_front"), numpy_helper.from_array(np.array([FRAMES, 1], np.int64), "in_turn"),
    ])  # fmt: skip
    unsqueeze.input[1], expand.input[1] = "in_front", "in_turn"
    onnx.save(model, path)
    x, timestep = mixed()
    with torch.no_grad():
        expected = checkpoint.model(x, timestep)
    assert snr_db(expected, run(path, x, timestep)) < 40


def test_openvino_multiplies_integers_and_agrees(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from dq_deploy.engines.build.engine import build_engine

    bundle = export(checkpoint.artifact, tmp_path / "bundle", target="qdq", dtype="fp32")
    engine = build_engine(bundle, tmp_path / "engine", backend="openvino", int8_kernels="always")
    report = json.loads(next(engine.path.glob("layers*.json")).read_text())
    found = {entry["name"]: entry["precision"] for entry in report["layers"]}
    if int8_serves(without_vnni=False):
        assert {found[layer.name] for layer in checkpoint.details.layers} == {"int8"}
    assert check(engine, checkpoint.artifact).failures == []


def test_check_says_what_changes_between_frames(bundle: Artifact, checkpoint: Checkpoint, cli: Cli) -> None:
    done = cli("check", bundle.path, "--checkpoint", checkpoint.artifact.path)
    assert done.code == 0, done.err
    assert "frames dB" in done.err + done.out
    result = check(bundle, checkpoint.artifact)
    assert all(row.snr_frames_db is not None and 0 < row.snr_frames_db < row.snr_bundle_db + 10 for row in result.timesteps)


@pytest.mark.parametrize("frames", [0, -3, "many"])
def test_a_number_of_frames_that_is_none_is_refused(frames: object, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    shutil.copytree(checkpoint.artifact.path, path)
    graph = json.loads((path / "graph.json").read_text())
    graph["quantizers"]["frame.input"]["frames"] = frames
    (path / "graph.json").write_text(json.dumps(graph))
    with pytest.raises(ArtifactError, match="the graph and the tensors do not fit"):
        load_checkpoint(resealed(path))


def test_a_quantizer_keeps_its_frames(checkpoint: Checkpoint) -> None:
    quantizer = checkpoint.quantizers["frame.input"]
    tensors = {f"again.{part}": tensor for part, tensor in quantizer.tensors().items()}
    timesteps = checkpoint.table_timesteps
    again = type(quantizer).from_tensors("again", quantizer.config(), tensors, timesteps, 1)
    x, steps = torch.randn(2 * FRAMES, 16, 6, 8), torch.tensor([0.0, 750.0])
    assert again.frames == FRAMES
    torch.testing.assert_close(again(x, steps).codes, quantizer(x, steps).codes)


class FramesBeforeSamples(nn.Module):
    """Folds the frames of [N, C, F, H, W] into the batch with the frames first, [F·N, C, H, W], and takes them apart by ``unflatten``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.linear, self.last = nn.Linear(8, 8), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        frames = x.shape[2]
        y = self.first(x.permute(2, 0, 1, 3, 4).flatten(0, 1)) + (timestep / 1000).repeat(frames)[:, None, None, None]
        y = torch.nn.functional.silu(self.middle(y)).unflatten(0, (frames, -1))
        y = self.linear(y.movedim(2, -1)).movedim(-1, 2)
        return self.last(y.flatten(0, 1)).unflatten(0, (frames, -1)).permute(1, 2, 0, 3, 4)


def test_frames_that_lie_before_the_samples(tmp_path: Path) -> None:
    """torch.export asks N · min(128, 128 · N) = 128 · N of the batch there, which it cannot prove."""
    make_checkpoint(FramesBeforeSamples(), tmp_path / "checkpoint", shape=(2, 3, 8, 8))
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle", target="qdq", dtype="fp32")
    result = check(bundle, tmp_path / "checkpoint", optimized=False)
    assert result, result.failures
