"""A rotation beside other stages: other weights in a checkpoint, the search for what is to blame, the choice of bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline

from dq_deploy.accuracy.error_sources import error_sources
from dq_deploy.artifacts import Artifact
from dq_deploy.quantization import quantize
from dq_deploy.quantization.bits.choose import choose_bits
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.quantization.refit import refit
from tests.tiny import FAST, scheduler, tiny_unet

OPTIONS: dict[str, Any] = {**FAST, "steps": 3, "rotation": "64", "final_samples": 0, "reference_samples": 8}
CHANGED = ("to_q.weight", "to_out.0.weight")


@dataclass(frozen=True)
class Rotated:
    """A pipeline whose attention reads 64 channels, another with other weights there, and the first one's checkpoint."""

    pipeline: Path
    tuned: Path
    checkpoint: Artifact[Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Rotated:
    root = tmp_path_factory.mktemp("rotated")
    unet = tiny_unet(block_out_channels=(8, 64), attention_head_dim=64)
    DDPMPipeline(unet=unet, scheduler=scheduler()).save_pretrained(root / "pipeline")
    with torch.no_grad():
        for weight in (parameter for name, parameter in unet.named_parameters() if name.endswith(CHANGED)):
            weight.add_(0.3 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    DDPMPipeline(unet=unet, scheduler=scheduler()).save_pretrained(root / "tuned")
    return Rotated(root / "pipeline", root / "tuned", quantize(root / "pipeline", root / "c", **OPTIONS))


@pytest.fixture(scope="module")
def loaded(made: Rotated) -> Checkpoint:
    return load_checkpoint(made.checkpoint.path)


def snr(artifact: Artifact[Any]) -> float:
    return median(artifact.manifest.details["snr_db"]["after_distillation"])


def test_both_ways_of_rotating_are_there(loaded: Checkpoint) -> None:
    assert {bool(choice.folded_into) for choice in loaded.details.rotation if choice.block} == {True, False}


def test_other_weights_are_rotated_as_the_first_were(made: Rotated, loaded: Checkpoint, tmp_path: Path) -> None:
    refitted = refit(made.checkpoint, tmp_path / "refitted", source=made.tuned)
    changed = refitted.manifest.details["refit"]["layers"]
    assert sorted(changed) == sorted(name for name in loaded.layers if f"{name}.weight".endswith(CHANGED))
    again = quantize(made.tuned, tmp_path / "again", **OPTIONS)
    assert snr(refitted) > snr(again) - 3
    assert load_checkpoint(refitted.path).details.rotation == loaded.details.rotation
    back = load_checkpoint(refit(refitted, tmp_path / "back", source=made.pipeline).path)
    for name in changed:
        (before, scale), (after, own) = loaded.layers[name].frozen, back.layers[name].frozen  # type: ignore[misc,union-attr]
        assert torch.equal(scale, own)
        assert float((before != after).float().mean()) < 1e-3  # a tie or two


def test_the_error_of_a_rotated_network_is_split_among_its_layers(loaded: Checkpoint) -> None:
    found = error_sources(loaded, 0.0)
    assert [row.layer for row in found.layers] == [layer.name for layer in loaded.details.layers]
    assert sum(row.error_share for row in found.layers) == pytest.approx(1)
    assert found.layers[-1].output_db == pytest.approx(found.snr_db, abs=0.02)
    rotated = {name for choice in loaded.details.rotation if choice.block for name in choice.layers}
    assert rotated
    assert all(row.output_db is not None and row.output_db > 15 for row in found.layers if row.layer in rotated)


def test_bits_are_chosen_for_the_rotated_network(made: Rotated, tmp_path: Path) -> None:
    options = {**OPTIONS, "preset": "w4a8"}
    choice = choose_bits(str(made.pipeline), "0.18x", **options)
    assert 0 < len(choice.keep) < len(choice.layers)
    mixed = quantize(made.pipeline, tmp_path / "mixed", keep=choice.keep, **options)
    assert snr(mixed) == pytest.approx(choice.snr_db, abs=3)
    assert load_checkpoint(mixed.path).details.rotation
