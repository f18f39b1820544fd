"""Activations that are constant or zero, channels without weights: defined results from capture to graph, whatever the options."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dq_deploy.accuracy import check
from dq_deploy.decibels import CEILING_DB, FLOOR_DB, ratio_db
from dq_deploy.decibels import snr_db as snr
from dq_deploy.exporters import export
from dq_deploy.formats import of_bits
from dq_deploy.quantization import numerics
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.tiny import SHAPE, WHOLE, make_checkpoint, snr_db


class Degenerate(nn.Module):
    """Every kind of nothing that a trained network may hold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        for name in ("constant", "zero", "late", "pruned", "holes"):
            setattr(self, name, nn.Conv2d(8, 8, 3, padding=1, bias=name in ("constant", "holes")))
        self.embed, self.nothing = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        with torch.no_grad():
            self.pruned.weight.zero_()  # a layer without weights
            self.holes.weight[2:4] = 0  # output channels without weights
            self.holes.weight[:, 5] = 0  # an input channel that nobody reads
            self.nothing.weight.zero_()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        dead = torch.cat([h[:, :4], torch.zeros_like(h[:, 4:])], dim=1)  # channels that are always 0
        step = t[:, None, None, None]
        h = h + self.holes(dead)
        h = h + self.constant(torch.full_like(h, -0.3))  # one value, everywhere and always
        h = h + self.zero(F.relu(h - 1e6))  # zero, always
        h = h + self.late(h * (step > 400))  # zero at some timesteps and not at others
        h = h + self.pruned(h) + self.embed(F.relu(t[:, None] - 1e6).expand(-1, 8))[:, :, None, None]
        tokens = self.nothing(h.flatten(2).transpose(1, 2)) * 0
        weights = torch.softmax(tokens @ tokens.transpose(1, 2), dim=-1)  # equal probabilities, from queries and keys that are zero
        return self.last(h + (weights @ h.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(h.shape))


QUICK: dict[str, Any] = {"steps": 2, "calibration_samples": 4, "iterations": 2}
OPTIONS: list[dict[str, Any]] = [
    {"dilation": "none"},
    {"dilation": "symmetric", "activations": "static"},
    {"dilation": "asymmetric", "zero_points": False},
    {"dilation": "auto", "initial_range": "percentile"},
    {"dilation": "smoothquant", "initial_range": "mse"},
    {"dilation": "auto", "weight_bits": 4, "initial_range": "mse"},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(Degenerate(), tmp_path_factory.mktemp("degenerate") / "checkpoint", **QUICK)


def test_the_model_has_them_all(checkpoint: Checkpoint) -> None:
    quantizers = checkpoint.quantizers
    for name in ("zero.input", "embed.input"):
        assert set(quantizers[name].scale_table().tolist()) == {1}
        assert set(quantizers[name].zero_point_table().tolist()) == {0}
    late, shift = quantizers["late.input"].scale_table(), quantizers["late.input"].zero_point_table()
    assert shift[0] == 0
    assert late[-1] <= late[0] <= 2 * late[-1]  # it saw zeros only, and is ready for what the other timestep sees
    assert set(checkpoint.layers["pruned"].frozen[1].tolist()) == {1}  # type: ignore[union-attr, index]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_results_are_finite_and_close(options: dict[str, Any], tmp_path: Path) -> None:
    made = make_checkpoint(Degenerate(), tmp_path / "made", **QUICK, **options)
    torch.manual_seed(2)
    x, t = torch.randn(4, *SHAPE), torch.tensor([0.0, 500.0, 0.0, 500.0])
    with torch.no_grad():
        assert snr_db(Degenerate()(x, t), made.model(x, t)) > (10 if "weight_bits" in options else 25)
    json.dumps(made.artifact.manifest.details, allow_nan=False)


@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
def test_both_graphs_compute_what_the_checkpoint_does(checkpoint: Checkpoint, target: str, tmp_path: Path) -> None:
    bundle = export(checkpoint.artifact, tmp_path / "bundle", target=target, dtype="fp32", **WHOLE[target])  # type: ignore[arg-type]
    verdict = check(bundle, checkpoint.artifact, optimized=False)
    assert verdict, verdict.failures


@pytest.mark.parametrize("bits", [2, 8])
def test_a_zero_activation_has_code_zero(bits: int) -> None:
    scale, zero_point = numerics.affine_parameters(torch.zeros(2), torch.tensor([0.0, 1.0]), of_bits(bits), symmetric=False)
    assert (float(scale[0]), float(zero_point[0])) == (1, 0)
    assert float(zero_point[1]) == -(2 ** (bits - 1))


class Zero(nn.Module):
    """A transformer as it is before training: what is added to a block's input, and the output, is zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.gate, self.time = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(1, 16)
        self.mlp, self.final = nn.Linear(16, 16), nn.Linear(16, 4)
        for layer in (self.gate, self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.patch(x.reshape(-1, 16, 4))
        c = F.silu(self.time(t[:, None] / 1000))
        h = h + self.gate(c)[:, None] * self.mlp(F.gelu(h))
        return self.final(h).reshape(x.shape)


@pytest.mark.parametrize(
    "options", [{}, {"iterations": 2}, {"dilation": "auto"}, {"weight_bits": 4, "activation_bits": 16, "dilation": "auto"}], ids=str
)
def test_a_network_whose_output_is_zero_has_a_defined_snr(options: dict[str, Any], tmp_path: Path) -> None:
    made = make_checkpoint(Zero(), tmp_path / "checkpoint", **{**QUICK, "max_float_share": 1.0, **options})
    assert set(made.details.snr_db["after_distillation"]) <= {CEILING_DB, FLOOR_DB}
    json.dumps(made.artifact.manifest.details, allow_nan=False)
    x, t = torch.randn(4, *SHAPE), torch.tensor([0.0, 500.0, 0.0, 500.0])
    assert float(made.model(x, t).abs().max()) < 1e-6
    if not options:
        bundle = export(made.artifact, tmp_path / "bundle", target="qdq", dtype="fp32")
        result = check(bundle, made.artifact)
        assert result
        json.dumps(result.model_dump(mode="json"), allow_nan=False)


def test_ratios_are_numbers_at_both_ends() -> None:
    assert [ratio_db(*powers) for powers in ((1, 0), (0, 0), (0, 1e-20), (1, 0.01), (1e-300, 1e300), (1, 1e-30))] == [
        CEILING_DB, CEILING_DB, FLOOR_DB, pytest.approx(20.0), FLOOR_DB, CEILING_DB,
    ]  # fmt: skip
    assert all(math.isnan(ratio_db(*powers)) for powers in ((1, math.inf), (1, math.nan), (math.inf, 1)))
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert [snr(zero, zero), snr(zero, one), snr(one, one)] == [CEILING_DB, FLOOR_DB, CEILING_DB]
    assert math.isnan(snr(zero[:0], zero[:0]))


class Causal(nn.Module):
    """Attention that looks back alone, with minus infinity in its mask: by torch's flag, by a buffer, by a tensor made on the way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.first, self.middle, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        if way == "a buffer":
            self.register_buffer("mask", torch.full((64, 64), -math.inf).triu(1))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.middle(torch.relu(self.first(x)) + t[:, None, None, None] * 1e-3)
        tokens = h.flatten(2).transpose(1, 2)
        if self.way == "is_causal":
            attended = F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True)
        else:
            scores = tokens @ tokens.transpose(1, 2)
            scores = scores + self.mask if self.way == "a buffer" else torch.where(scores < -1, torch.tensor(-math.inf), scores)
            attended = torch.softmax(scores, dim=-1) @ tokens
        return self.last(attended.transpose(1, 2).reshape(h.shape))


@pytest.mark.parametrize("way", ["is_causal", "a buffer", "a constant"])
def test_a_mask_of_minus_infinity_goes_the_whole_way(way: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(Causal(way), tmp_path / "c", steps=2, max_float_share=1)
    result = check(export(checkpoint.artifact, tmp_path / "b", target="qdq"), checkpoint.artifact)
    assert result, result.failures


class Diverging(nn.Module):
    """Gains of 1e6: finite in float at every step, and rounded products overflow float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 8), nn.Conv2d(8, 1, 3, padding=1)
        with torch.no_grad():
            self.first.weight.mul_(1e6)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.first(x) + t[:, None, None, None] / 1000
        return self.last(h + self.middle(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_an_error_that_is_not_finite_is_written_as_the_floor(tmp_path: Path) -> None:
    """A manifest is JSON, which has no NaN: hours of work ended in a traceback."""
    checkpoint = make_checkpoint(Diverging(), tmp_path / "checkpoint", **{**QUICK, "steps": 5, "iterations": 0})
    details = checkpoint.artifact.manifest.details
    assert FLOOR_DB in [db for choice in details["scale_choices"] for db in choice["snr_db"].values()]
