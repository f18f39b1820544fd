from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.pipeline import quantize
from tests.tiny import FAST, SHAPE, PlainUNet, make_checkpoint, scheduler, snr_db


def test_a_plain_module_needs_no_adapter(plain_checkpoint: Checkpoint) -> None:
    details = plain_checkpoint.artifact.manifest.details
    assert details["inputs"] == ["x", "timestep"]
    assert details["source"] is None
    x, t = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 260.0, 740.0])
    with torch.no_grad():
        assert snr_db(PlainUNet()(x, t), plain_checkpoint.model(x, t)) > 20


def test_planned_layers_are_those_in_the_checkpoint(unet_checkpoint: Checkpoint) -> None:
    details = unet_checkpoint.artifact.manifest.details
    assert sorted(layer["name"] for layer in details["layers"]) == sorted(unet_checkpoint.layers)
    assert {q["name"] for q in details["quantizers"]} == set(unet_checkpoint.quantizers)
    assert {q for layer in details["layers"] for q in layer["quantizers"]} == set(unet_checkpoint.quantizers)
    assert [f["name"] for f in details["float_layers"]] == ["conv_in"]
    total = sum(layer["macs"] for layer in [*details["layers"], *details["float_layers"]])
    assert details["float_mac_share"] == pytest.approx(details["float_layers"][0]["macs"] / total)


def test_the_manifest_says_what_was_done(unet_checkpoint: Checkpoint) -> None:
    manifest = unet_checkpoint.artifact.manifest
    assert manifest.quantization is not None
    assert (manifest.quantization["weight_bits"], manifest.quantization["steps"]) == (8, 4)
    assert manifest.timesteps == [0, 250, 500, 750]
    assert manifest.details["component"] == "unet"
    assert manifest.details["source"]["sha256"]
    assert len(manifest.details["snr_db"]["after_distillation"]) == 4
    assert manifest.details["dilation"]


def test_the_same_input_gives_the_same_files(plain_checkpoint: Checkpoint, tmp_path: Path) -> None:
    again = make_checkpoint(PlainUNet(), tmp_path / "again")
    assert again.artifact.manifest.files == plain_checkpoint.artifact.manifest.files
    assert again.artifact.manifest.to_json() == plain_checkpoint.artifact.manifest.to_json()


def test_a_module_needs_scheduler_and_shape(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="scheduler"):
        quantize(PlainUNet(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nan_in_a_weight_names_the_tensor_and_writes_nothing(tmp_path: Path) -> None:
    model = PlainUNet()
    with torch.no_grad():
        model.down.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ArtifactError, match="down.weight"):
        quantize(model, tmp_path / "out", scheduler=scheduler(), sample_shape=SHAPE, **FAST)
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="already exists"):
        quantize(PlainUNet(), tmp_path / "out", scheduler=None)


class Odd(nn.Module):
    """Zero weight channels, a constant activation, a dead activation, a layer with all weights zero, and an oblong sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.conv, self.dead = nn.Conv2d(8, 8, (3, 1), padding=(1, 0)), nn.Linear(8, 8, bias=False)
        with torch.no_grad():
            self.conv.weight[:3] = 0
            self.conv.weight[:, 5] = 0
            self.dead.weight.zero_()

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        h = self.first(sample) + timestep[:, None, None, None] / 1000
        constant = self.conv(torch.ones_like(h) * 3) + self.conv(torch.relu(h - 1e6))
        h = self.conv(h) + constant
        return self.last(h + self.dead(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("rule", ["none", "symmetric", "asymmetric", "auto"])
def test_zero_channels_and_constant_activations_stay_finite(rule: str, tmp_path: Path) -> None:
    made = make_checkpoint(Odd(), tmp_path / "odd", shape=(1, 6, 10), dilation=rule, steps=1, iterations=2)
    x, t = torch.randn(5, 1, 6, 10), torch.zeros(5)
    with torch.no_grad():
        assert snr_db(Odd()(x, t), made.model(x, t)) > 20
    json.dumps(made.artifact.manifest.details, allow_nan=False)
