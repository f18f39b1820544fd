"""Models whose time is not a place in DDIM's table, all the way to pictures; and what the project's own loop cannot sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PiflowScheduler,
)
from torch import nn

from dq_deploy.accuracy import check
from dq_deploy.artifacts import Artifact
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization import load_checkpoint, quantize
from dq_deploy.quantization.calibration.choice import settings
from dq_deploy.quantization.calibration.schedules import plain_config
from dq_deploy.quantization.calibration.walk import Walk, try_out
from dq_deploy.sampling import Drawing, draw
from dq_deploy.sampling.schedulers import calibrated_scheduler
from dq_deploy.sampling.seeds import picture_seed
from tests.tiny import FAST, SHAPE, tiny_unet

EDM = EulerDiscreteScheduler(
    timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=0.002, sigma_max=80.0
)
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)


class Convolutions(nn.Module):
    """Three of them, and the time added."""

    def __init__(self, channels: int, given: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((channels, 8), (8, 8), (8, given)))
        self.time = nn.Linear(1, 8)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        h = self.first(sample) + self.time(torch.sin(timestep.float()[:, None]))[:, :, None, None]
        out: torch.Tensor = self.last(torch.relu(self.middle(torch.relu(h))))
        return out


class Inpainting(nn.Module):
    """A network of nine channels as one of four with conditions."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Convolutions(9, 4)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, mask: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network(torch.cat([sample, mask, masked], dim=1), timestep)
        return out


class NoConfig:
    """Flow matching in five lines, as users write it: no class of diffusers, no ``config``."""

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.linspace(1, 0, steps + 1)[:-1]

    def step(self, output: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002  as steps are called
        return x - output / len(self.timesteps)


@pytest.fixture(scope="module", params=["edm", "flow"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Artifact]:
    """A scheduler, and the bundle of a pipeline of pixels that has it."""
    scheduler, root = {"edm": EDM, "flow": FLOW}[request.param], tmp_path_factory.mktemp(request.param)
    DDPMPipeline(unet=unet(), scheduler=scheduler).save_pretrained(root / "pipeline")
    checkpoint = quantize(root / "pipeline", root / "checkpoint", **{**FAST, "reference_samples": 16})
    return scheduler, export(checkpoint, root / "bundle", target="onnxruntime")


def unet() -> Any:
    """A UNet of one level."""
    return tiny_unet(block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False)


def visited(scheduler: Any, steps: int) -> list[float]:
    scheduler.set_timesteps(steps)
    return [float(t) for t in scheduler.timesteps]


def test_rows_are_where_the_network_is_called(saved: tuple[Any, Artifact]) -> None:
    scheduler, bundle = saved
    checkpoint = load_checkpoint(bundle.path.parent / "checkpoint")
    assert bundle.manifest.timesteps == sorted(visited(scheduler, 4))
    entry = bundle.manifest.scheduler
    assert entry is not None
    assert entry["calibrated_with"]["class"] == entry["class"] == type(scheduler).__name__
    assert entry["calibrated_with"]["why"].startswith(("its timesteps run from -1.554 to 1.096", "the scheduler has no alphas_cumprod"))
    # The rows between are on straight lines between these, ascending, at negative times too.
    rows = checkpoint.table_timesteps
    torch.testing.assert_close(rows[:: (len(rows) - 1) // 3], torch.tensor(bundle.manifest.timesteps))
    assert bool((rows.diff() > 0).all())
    assert check(bundle, bundle.path.parent / "checkpoint")


@pytest.mark.parametrize("steps", [None, 7])
def test_pictures_are_drawn_with_the_scheduler_of_the_calibration(saved: tuple[Any, Artifact], steps: int | None) -> None:
    scheduler, bundle = saved
    drawn = draw(bundle, Drawing(n=2, seed=5, steps=steps))
    expected = visited(scheduler, steps or 4)
    assert drawn.timesteps == expected
    rows = bundle.manifest.timesteps
    assert drawn.furthest == pytest.approx(max(min(abs(t - row) for row in rows) for t in expected))
    assert (drawn.furthest == 0) == (steps is None)
    # The float picture by hand, as its user draws it.
    model, x = unet(), torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(picture_seed(5, 1)))
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(model(scaled, t).sample, t, x).prev_sample
    assert drawn.expected is not None
    np.testing.assert_allclose(drawn.expected[1], (x[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy(), atol=1e-4)
    assert drawn.psnr_db is not None
    assert min(drawn.psnr_db) > 25


def test_a_scheduler_of_the_users_own(tmp_path: Path) -> None:
    artifact = quantize(Convolutions(3, 3), tmp_path / "out", scheduler=NoConfig(), sample_shape=(3, 8, 8), **FAST)
    assert artifact.manifest.timesteps == [0.25, 0.5, 0.75, 1.0]
    assert artifact.manifest.scheduler is not None
    assert (artifact.manifest.scheduler["class"], artifact.manifest.scheduler["config"]) == ("NoConfig", {})
    with pytest.raises(UsageError, match=r"was calibrated with a NoConfig, and diffusers .* has no scheduler of that name\ndraw in Python"):
        draw(artifact, Drawing(n=1, compare_float=False))


def test_a_mask_is_a_condition(tmp_path: Path) -> None:
    where: dict[str, Any] = {"scheduler": DDIMScheduler(), **FAST}
    with pytest.raises(
        UsageError, match=r"takes samples of \[9, 8, 8\] and gives \[4, 8, 8\], and a DDIMScheduler steps .*\n.*is a condition"
    ):
        quantize(Convolutions(9, 4), tmp_path / "out", sample_shape=(9, 8, 8), **where)
    assert not (tmp_path / "out").exists()
    given = {"mask": torch.ones(2, 1, 8, 8), "masked": torch.zeros(2, 4, 8, 8)}
    artifact = quantize(Inpainting(), tmp_path / "out", sample_shape=(4, 8, 8), conditions=given, **where)
    assert artifact.manifest.details["inputs"] == ["sample", "timestep", "mask", "masked"]


def test_inside_inference_mode(tmp_path: Path) -> None:
    with torch.inference_mode():
        model = Convolutions(3, 3)  # its parameters are inference tensors
        artifact = quantize(
            model, tmp_path / "out", scheduler=DDIMScheduler(), sample_shape=(3, 8, 8), **{**FAST, "iterations": 2}
        )  # fmt: skip
        bundle = export(artifact, tmp_path / "bundle", target="onnxruntime")
        assert check(bundle, artifact)
        assert draw(bundle, Drawing(n=1, compare_float=False)).timesteps == [750.0, 500.0, 250.0, 0.0]
    assert all(parameter.is_inference() for parameter in model.parameters())


def tried(scheduler: Any, output: torch.Tensor, x: torch.Tensor) -> None:
    try_out(Walk(scheduler, 3, [torch.Generator().manual_seed(0)]), output, x)


def test_one_trial_before_the_run() -> None:
    x = torch.randn(1, 4, 8, 8)
    with pytest.raises(
        UsageError, match=r"use_dynamic_shifting needs a number mu, which its pipeline computes.*\nquantize the pipeline, or"
    ):
        tried(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), x, x)
    with pytest.raises(UsageError, match=r"takes samples of \[4, 8, 8\] and gives \[1, 8, 8\]"):  # a step would broadcast it
        tried(DDIMScheduler(), x[:, :1], x)
    with pytest.raises(UsageError, match=r"PiflowScheduler does not step from timestep 1000: Piflow model output must match .*\nthe model"):
        tried(PiflowScheduler(n_grid=3), x.repeat(1, 1, 3, 1), x)
    with pytest.raises(UsageError, match=r"makes \[4, 4, 8, 8\] of a sample of .*\n.*gives \[4, 1, 8, 8\]: wrap it in a module .*shape"):
        tried(DDIMScheduler(), x[:, :, None], x)
    with pytest.raises(UsageError, match=r"does not step from timestep .*\n.*gives \[8, 4, 8\]: wrap it in a module .*shape"):
        tried(DDIMScheduler(), x.reshape(1, 8, 4, 8), x)
    with pytest.raises(
        UsageError, match=r"step from timestep 999 gives NaN or Inf .*\nits settings do not fit.*rescale_betas_zero_snr True"
    ):
        tried(DDPMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"), x, x)
    tried(DDIMScheduler(), torch.cat([x, x], dim=1), x)  # noise and a variance
    with pytest.raises(UsageError, match="a str is not a denoising loop: it has no set_timesteps and no step"):
        tried("ddim", x, x)


def test_the_scheduler_of_a_manifest_is_made_anew(saved: tuple[Any, Artifact]) -> None:
    _, bundle = saved

    def with_entry(entry: dict[str, Any], **quantization: Any) -> Artifact:
        update = {"scheduler": entry, "quantization": {**(bundle.manifest.quantization or {}), **quantization}}
        return Artifact(bundle.path, bundle.manifest.model_copy(update=update))

    lcm = {"class": "LCMScheduler", "config": plain_config(LCMScheduler())}
    ran = calibrated_scheduler(with_entry({**lcm, "calibrated_with": {"class": "DDIMScheduler"}}))
    assert isinstance(ran, DDIMScheduler)
    assert (ran.config.beta_start, ran.config.beta_schedule, ran.config.clip_sample) == (0.00085, "scaled_linear", False)
    assert isinstance(calibrated_scheduler(with_entry({**lcm, "calibrated_with": {"class": "LCMScheduler"}})), LCMScheduler)
    # Manifests of earlier versions do not say which ran; the rule does.
    assert isinstance(calibrated_scheduler(with_entry(lcm)), DDIMScheduler)
    assert isinstance(calibrated_scheduler(with_entry(lcm, sampler="pipeline")), LCMScheduler)
    # One that is not a class of diffusers may still have been replaced by DDIM, whose settings are there.
    assert isinstance(
        calibrated_scheduler(with_entry({**lcm, "class": "Mine", "calibrated_with": {"class": "DDIMScheduler"}})), DDIMScheduler
    )
    solver = DPMSolverMultistepScheduler(use_karras_sigmas=True, lambda_min_clipped=-5.1)
    for own in (solver, DPMSolverMultistepScheduler()):  # minus infinity by default, which JSON does not have
        again = calibrated_scheduler(with_entry({"class": "DPMSolverMultistepScheduler", "config": plain_config(own)}, sampler="pipeline"))
        assert settings(again) == settings(own)
    broken = {"class": "LCMScheduler", "config": {"beta_schedule": "wavy"}, "calibrated_with": {"class": "LCMScheduler"}}
    with pytest.raises(ArtifactError, match="no LCMScheduler can be made from the manifest's configuration: wavy is not implemented"):
        calibrated_scheduler(with_entry(broken))


def test_a_scheduler_that_was_changed_is_calibrated_as_it_is_and_not_drawn_with_as_it_was(tmp_path: Path) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_shift(5.0)
    made = quantize(tiny_unet(), tmp_path / "c", scheduler=scheduler, sample_shape=SHAPE, **FAST)
    assert made.manifest.timesteps == pytest.approx([4.98, 714.897, 909.215, 1000], rel=1e-3)
    assert (made.manifest.scheduler or {})["changed"] == ["timesteps", "sigmas"]
    with pytest.raises(UsageError, match="FlowMatchEulerDiscreteScheduler whose timesteps, sigmas had been changed after it was made"):
        calibrated_scheduler(made)
