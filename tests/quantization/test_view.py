"""Networks whose pipelines give them another time than the scheduler's, sampled without these pipelines."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dq_deploy.quantization.calibration.sampling_loop import SamplingLoop
from dq_deploy.quantization.calibration.source import Request, calibration_source
from dq_deploy.quantization.calibration.view import AS_IT_IS, VIEWS, View, view_of
from dq_deploy.quantization.calibration.walk import Walk
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.sources import load_source
from tests.tiny import SHAPE
from tests.tiny_pipelines import tiny_flux

SHARE = re.compile(
    r"timestep=timestep / (1000|self\.scheduler\.config\.num_train_timesteps)"
    r"|[\[(]t(\.float\(\))? / (1000|self\.scheduler\.config\.num_train_timesteps)[\])]"
)
FROM_NOISE = re.compile(r"= \(1000 - timestep\) / 1000|current_timestep = 1 - (t|current_timestep) / self\.scheduler\.config")
NEGATED = "noise_pred = -noise_pred"


def views_in_diffusers() -> dict[str, View]:
    """What the source of diffusers' pipelines says of their transformers."""
    found: dict[str, View] = {}
    for path in (Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py"):
        source = path.read_text(encoding="utf-8")
        network = re.search(r"^ +transformer: (\w+)", source, re.MULTILINE)
        from_noise, negated = bool(FROM_NOISE.search(source)), NEGATED in source
        view = View(fraction=from_noise or bool(SHARE.search(source)), from_noise=from_noise, negated=negated)
        if network and view != AS_IT_IS:
            found[network[1]] = view
    return found


def test_every_view_is_that_of_diffusers() -> None:
    assert views_in_diffusers() == VIEWS


def test_a_share_of_the_schedulers_time() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    own = Walk(scheduler, 4, []).timesteps
    assert own[0] == 1000
    for name, expected in (
        ("UNet2DModel", own),
        ("FluxTransformer2DModel", [t / 1000 for t in own]),
        ("ZImageTransformer2DModel", [1 - t / 1000 for t in own]),
        ("HiDreamImageTransformer2DModel", own),
    ):
        assert Walk(scheduler, 4, [], view_of(name)).timesteps == pytest.approx(expected, abs=1e-6)


class Shares:
    """A scheduler that counts in shares itself."""

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.linspace(1, 0.25, steps)

    def step(self, *_: Any) -> None: ...


def test_shares_stay_shares() -> None:
    assert Walk(Shares(), 4, [], view_of("FluxTransformer2DModel")).timesteps == [1, 0.75, 0.5, 0.25]


def test_a_network_that_counts_from_the_noise() -> None:
    """The same trajectory as of one that answers the scheduler directly; rows ascend in the network's own time."""

    def direct(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return 0.3 * sample + timestep[:, None, None, None] / 1000

    def backwards(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return -direct(sample, (1 - timestep) * 1000)

    loop = SamplingLoop(FlowMatchEulerDiscreteScheduler(), 4, SHAPE)
    expected = loop.collect(direct, range(2))
    data = replace(loop, view=view_of("Lumina2Transformer2DModel")).collect(backwards, range(2))
    torch.testing.assert_close(data.timesteps, (1 - expected.timesteps / 1000).flip(0))
    torch.testing.assert_close(data.samples, expected.samples.flip(0), rtol=1e-4, atol=1e-4)


def test_flux_with_tensors_sees_the_time_of_its_pipeline() -> None:
    source = load_source(tiny_flux())
    tokens = {"encoder_hidden_states": torch.randn(1, 4, 24)}
    calibration = calibration_source(Request(conditions=tokens), QuantizeConfig.build(steps=4), replace(source, sample_shape=(16, 16)))
    seen: list[float] = []

    def model(sample: torch.Tensor, timestep: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
        seen.append(float(timestep[0]))
        return torch.zeros_like(sample)

    calibration.try_out(model)
    assert seen == [1.0]
