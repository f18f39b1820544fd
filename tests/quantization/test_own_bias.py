"""Networks that add a layer's bias in a line of their own, as EDM's convolutions do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

import dq_deploy
from dq_deploy.decibels import snr_db
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.quantization import load_checkpoint


class OwnBias(nn.Module):
    """A convolution that adds its bias in a line of its own, as EDM's do; ``twice``: within the convolution too."""

    def __init__(self, inputs: int, outputs: int, *, twice: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5), nn.Parameter(torch.randn(outputs))
        self.twice = twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.conv2d(x, self.weight, self.bias if self.twice else None, padding=1)
        return y.add_(self.bias.reshape(1, -1, 1, 1))


class OwnBiases(nn.Module):
    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.first, self.middle, self.last = (OwnBias(i, o, twice=twice) for i, o in ((1, 8), (8, 8), (8, 1)))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.first(x) + t[:, None, None, None] / 1000
        return self.last(torch.relu(self.middle(torch.relu(h))))


@pytest.mark.parametrize("twice", [False, True])
def test_a_bias_that_the_model_adds_itself_is_added_as_often_after_loading(twice: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OwnBiases(twice=twice).eval()
    dq_deploy.quantize(
        model, tmp_path / "checkpoint", scheduler=DDPMScheduler(), sample_shape=(1, 8, 8), steps=2, calibration_samples=4,
        reference_samples=2, iterations=0, dilation="none", max_float_share=1.0,
    )  # fmt: skip
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    reference = checkpoint.reference()
    sample, timestep, expected = reference.samples[1], reference.timesteps[1].repeat(2), reference.outputs[1]
    assert snr_db(expected, checkpoint.model(sample, timestep)) > 35
    dq_deploy.export(tmp_path / "checkpoint", tmp_path / "bundle", target="onnxruntime")
    got = OnnxRuntimeRunner(tmp_path / "bundle", threads=1).run({"x": sample.numpy(), "timestep": timestep.numpy()})
    assert snr_db(expected, torch.from_numpy(got)) > 35


class Halves(nn.Module):
    """A linear layer that adds half of a bias within and all of it after it; ``named``: two that have the names of its own."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.weight = nn.Linear(16, 16) if named else nn.Parameter(torch.randn(16, 16) / 4)
        self.bias = nn.Parameter(torch.randn(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.weight, nn.Linear):
            return nn.functional.linear(x, self.weight.weight, self.bias) + self.weight.bias + self.bias
        return nn.functional.linear(x, self.weight, self.bias * 0.5) + self.bias


class TwoHalves(nn.Module):
    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(16, 16), Halves(named=named), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.first(x) + t[:, None, None] / 1000
        return self.last(torch.relu(self.middle(torch.relu(h))))


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("target", ["onnxruntime", "qdq"])
def test_biases_of_one_name_are_not_taken_for_each_other(named: bool, target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dq_deploy.quantize(
        TwoHalves(named=named).eval(), tmp_path / "checkpoint", scheduler=DDPMScheduler(), sample_shape=(8, 16), steps=2,
        calibration_samples=4, reference_samples=2, iterations=0, dilation="none", max_float_share=1.0,
    )  # fmt: skip
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    stored = checkpoint.details.snr_db["after_distillation"]
    reference = checkpoint.reference()
    for row, timestep in enumerate(reference.timesteps):
        got = checkpoint.model(reference.samples[row], timestep.repeat(2))
        assert snr_db(reference.outputs[row], got) == pytest.approx(stored[row], abs=0.1)
    bundle = dq_deploy.export(tmp_path / "checkpoint", tmp_path / "bundle", target=target, dtype="fp32")
    assert dq_deploy.check(bundle, tmp_path / "checkpoint")
