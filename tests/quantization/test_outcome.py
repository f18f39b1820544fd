"""What is kept of distillation is what draws nearest to the float network."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from dq_deploy.artifacts.details import KeptState
from dq_deploy.decibels import FLOOR_DB, snr_db
from dq_deploy.errors import UsageError
from dq_deploy.quantization import outcome
from dq_deploy.quantization.calibration.sampling_loop import SamplingLoop
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.outcome import BEFORE, CORRECTED, DISTILLED, nearest
from tests.tiny import SHAPE, PlainUNet, make_checkpoint, scheduler

SEEDS, STEPS = 3, 4
TRAINED: dict[str, Any] = {"iterations": 3, "judged_samples": SEEDS, "steps": STEPS, "weight_bits": 4}


def kept(checkpoint: Checkpoint) -> KeptState:
    found = checkpoint.artifact.details.kept_state
    assert found is not None
    return found


def drawn(model: Any) -> torch.Tensor:
    """Final samples of the seeds that judge, of a network called with sample and timestep, another way: [n, ...]."""

    def answer(x: torch.Tensor, t: float, _: Any) -> torch.Tensor:
        return model(x.flatten(0, 1), torch.full((SEEDS,), t)).unflatten(0, (1, -1))

    return SamplingLoop(scheduler(), STEPS, SHAPE).final_samples(answer, range(2_000_000, 2_000_000 + SEEDS))[0]


@pytest.mark.parametrize("state", [BEFORE, DISTILLED, CORRECTED])
def test_the_checkpoint_is_in_the_state_that_is_kept(state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = PlainUNet()
    monkeypatch.setattr(outcome, "nearest", lambda *_: state)
    checkpoint = make_checkpoint(network, tmp_path / "kept", **TRAINED)
    found = kept(checkpoint)
    assert set(found.final_snr_db) == {BEFORE, DISTILLED, CORRECTED}
    assert bool(checkpoint.artifact.details.distillation) == (state != BEFORE)
    expected = drawn(network)
    ours = fmean(snr_db(a, b) for a, b in zip(expected, drawn(checkpoint.model), strict=True))
    assert ours == pytest.approx(found.final_snr_db[state], abs=0.02)
    assert found.summary.startswith(f"{state}: final samples of {SEEDS} seeds")


def test_what_is_not_kept_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = PlainUNet()
    monkeypatch.setattr(outcome, "nearest", lambda *_: BEFORE)
    back = make_checkpoint(network, tmp_path / "back", **TRAINED)
    untrained = make_checkpoint(network, tmp_path / "untrained", **{**TRAINED, "iterations": 0})
    for name, tensor in untrained.model.state_dict().items():
        assert torch.equal(tensor, back.model.state_dict()[name]), name


def test_nobody_judges_without_samples(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(PlainUNet(), tmp_path / "all", **{**TRAINED, "judged_samples": 0})
    assert checkpoint.artifact.details.kept_state is None
    assert checkpoint.artifact.details.distillation


def test_what_is_trained_is_kept_where_nothing_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> torch.Tensor:
        raise UsageError("the network predicts no step of a sample")

    monkeypatch.setattr(SamplingLoop, "final_samples", refused)
    checkpoint = make_checkpoint(PlainUNet(), tmp_path / "none", **TRAINED, rounding="gptq")
    assert checkpoint.artifact.details.kept_state is None
    assert checkpoint.artifact.details.distillation
    assert any("output_bias" in name for name in checkpoint.model.state_dict())


@pytest.mark.parametrize(("asked", "states"), [(True, {BEFORE, CORRECTED}), (False, {BEFORE, DISTILLED})])
def test_an_output_bias_that_was_asked_for_is_no_choice(asked: bool, states: set[str], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(PlainUNet(), tmp_path / "asked", **TRAINED, output_bias=asked)
    assert set(kept(checkpoint).final_snr_db) == states
    assert any("output_bias" in name for name in checkpoint.model.state_dict()) == asked


def test_a_lead_within_its_error_changes_nothing() -> None:
    rule = [20.0, 24.0, 28.0]
    assert nearest({BEFORE: [21.0, 25.0, 29.0], DISTILLED: rule}, DISTILLED) == BEFORE
    assert nearest({BEFORE: [30.0, 20.0, 23.0], DISTILLED: rule}, DISTILLED) == DISTILLED  # +0.3 ± 5 dB
    assert nearest({BEFORE: [19.0, 23.0, 27.0], DISTILLED: rule}, DISTILLED) == DISTILLED


def test_a_network_that_draws_nothing_finite_is_not_kept() -> None:
    assert nearest({BEFORE: [20.0, 20.0], DISTILLED: [FLOOR_DB, 20.0]}, DISTILLED) == BEFORE
    assert nearest({BEFORE: [FLOOR_DB, FLOOR_DB], DISTILLED: [10.0, 10.0]}, BEFORE) == DISTILLED


def test_what_is_not_finite_is_written_as_the_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "snr_db", lambda *_: math.nan)
    found = kept(make_checkpoint(PlainUNet(), tmp_path / "c", **TRAINED))
    assert set(found.final_snr_db.values()) == {FLOOR_DB}
