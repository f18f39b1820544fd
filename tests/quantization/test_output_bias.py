from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.output_bias import OutputBias, channel_axis, insert_output_bias, mean_error, output_bias
from dq_deploy.quantization.table_rows import parts
from tests.tiny import WHOLE, PlainUNet, change_tensors, make_checkpoint, quantized_copy, run

TABLE = "corrections.output_bias.table"


def errors(model: Callable[..., torch.Tensor], data: Trajectories) -> torch.Tensor:
    """Mean error [T, C] of a model's outputs [N, C, H, W], another way."""
    return torch.stack(
        [
            (model(x, t.repeat(len(x))) - y).double().mean(dim=(0, 2, 3))
            for t, x, y in zip(data.timesteps, data.samples, data.outputs, strict=True)
        ]
    )


def test_nothing_is_left_of_the_mean_error(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    quantized, _ = quantized_copy(plain_graph, plain_data, activation_bits=3)
    with torch.no_grad():
        before = errors(quantized, plain_data)
        table = mean_error(quantized, plain_data, batch_size=3)
        insert_output_bias(quantized, table, plain_data.timesteps)
        after = errors(quantized, plain_data)
    assert torch.allclose(table.double(), before, atol=1e-6)
    assert float(before.abs().max()) > 1e-3
    assert float(after.abs().max()) < 1e-6


def test_a_static_model_has_one_bias_for_all_timesteps(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    quantized, _ = quantized_copy(plain_graph, plain_data, activation_bits=3, activations="static")
    table = mean_error(quantized, plain_data, batch_size=8, static=True)
    assert torch.equal(table, table[:1].expand_as(table))
    with torch.no_grad():
        assert torch.allclose(table[0].double(), errors(quantized, plain_data).mean(dim=0), atol=1e-6)


@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 4, 4), 1), ((2, 3, 2, 4, 4), 1), ((2, 5, 3), 2), ((2, 3), 1)])
def test_the_channels_of_images_videos_tokens_and_vectors(shape: tuple[int, ...], axis: int) -> None:
    assert channel_axis(len(shape)) == axis
    timesteps, wrong = torch.tensor([0.0, 500.0]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    correction = OutputBias(wrong, timesteps, axis)
    samples, outputs = torch.randn(2, *shape), torch.randn(2, *shape)
    data = Trajectories(timesteps, samples, outputs, {})

    def off(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The float model's answer, and the table on top."""
        row = int(timestep[0] > 250)
        return outputs[row, :1].expand_as(x) - correction(torch.zeros_like(x), timestep)

    same = replace(data, outputs=outputs[:, :1].expand_as(outputs))
    assert torch.allclose(mean_error(off, same, batch_size=1), wrong, atol=1e-5)


def test_each_sample_of_a_batch_has_its_own_row() -> None:
    correction = OutputBias(torch.tensor([[1.0], [10.0]]), torch.tensor([0.0, 100.0]), 1)
    got = correction(torch.zeros(3, 1, 2, 2), torch.tensor([99.0, 0.0, 50.0]))  # a midpoint goes to the smaller timestep
    assert got[:, 0, 0, 0].tolist() == [-10.0, -1.0, -1.0]


def test_the_checkpoint_keeps_it_and_both_targets_subtract_it(plain_checkpoint: Checkpoint, tmp_path: Path) -> None:
    correction = output_bias(plain_checkpoint.model)
    assert correction is not None
    assert correction.table.shape == (3 * parts(4) + 1, 1)
    assert float(correction.table.abs().max()) > 0
    path = Path(copytree(plain_checkpoint.artifact.path, tmp_path / "more"))
    change_tensors(path, lambda t: t.update({TABLE: t[TABLE] + torch.tensor([[1.0], [2.0], [3.0], [4.0]])}))
    sample, timestep = torch.randn(4, 1, 8, 8), plain_checkpoint.timesteps
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for target in ("qdq", "onnxruntime"):
        two = [
            run(export(source, tmp_path / f"{target}-{index}", target=target, dtype="fp32", **WHOLE[target]), sample, timestep)  # type: ignore[arg-type]
            for index, source in enumerate((plain_checkpoint.artifact.path, path))
        ]
        assert torch.allclose((two[0] - two[1]).mean(dim=(1, 2, 3)), expected, atol=1e-4)


def test_it_can_be_left_out(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(PlainUNet(), tmp_path / "without", output_bias=False)
    assert output_bias(checkpoint.model) is None
    bundle = export(checkpoint.artifact, tmp_path / "bundle", target="qdq", dtype="fp32")
    sample, timestep = torch.randn(4, 1, 8, 8), checkpoint.timesteps
    with torch.no_grad():
        assert torch.allclose(run(bundle, sample, timestep), checkpoint.model(sample, timestep), atol=1e-3)


def test_it_cannot_be_asked_for_where_activations_stay_float() -> None:
    with pytest.raises(UsageError, match="output_bias would be ignored"):
        QuantizeConfig.build("w4a16", output_bias=False)


@pytest.mark.parametrize("change", [
    lambda t: t.update({TABLE: t[TABLE][:2].clone()}),
    lambda t: t.update({TABLE: t[TABLE].double()}),
    lambda t: t.update({TABLE: t[TABLE] * float("nan")}),
    lambda t: t.pop(TABLE),
])  # fmt: skip
def test_another_table_is_refused(change: Callable[[dict[str, torch.Tensor]], Any], plain_checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = Path(copytree(plain_checkpoint.artifact.path, tmp_path / "copy"))
    with pytest.raises(ArtifactError):
        load_checkpoint(change_tensors(path, change))
