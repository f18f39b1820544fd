"""``quantize`` leaves the caller's module, pipeline and settings of torch as they were, whether it succeeds or not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.utils import logging as diffusers_logging
from torch import nn

from dq_deploy.errors import UsageError
from dq_deploy.quantization import quantize
from tests.sources.test_plain_copy import same, state
from tests.tiny import FAST, PlainUNet, scheduler, tiny_unet
from tests.tiny_pipelines import tiny_stable_diffusion

QUICK: dict[str, Any] = {**FAST, "steps": 2, "calibration_samples": 2, "reference_samples": 1, "output_bias": False}
SHAPE = (1, 8, 8)


def world() -> dict[str, Any]:
    """Settings of this process."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002  the global state itself
        "random": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "bars": diffusers_logging.is_progress_bar_enabled(),
    }


def scheduler_state(own: Any) -> dict[str, Any]:
    return {name: repr(value) for name, value in vars(own).items()}


def whole(pipeline: Any) -> dict[str, Any]:
    """Everything of a pipeline."""
    return {
        "attributes": {name: id(value) for name, value in vars(pipeline).items()},
        "inside": {name: repr(value) for name, value in vars(pipeline).items()},
        "parts": {name: id(part) for name, part in pipeline.components.items()},
        "scheduler": scheduler_state(pipeline.scheduler),
    }


@pytest.mark.parametrize("option", [{}, {"keep": {"no.such.layer": 8}}], ids=["done", "refused"])
def test_a_module(tmp_path: Path, option: dict[str, Any]) -> None:
    model, schedule = tiny_unet(dropout=0.3).half().train(), EulerDiscreteScheduler()
    model.conv_in.requires_grad_(requires_grad=False)
    model.mid_block.eval()
    seen: list[int] = []
    model.conv_out.register_forward_hook(lambda *_: seen.append(1))
    before, own, settings = state(model), scheduler_state(schedule), world()
    try:
        quantize(model, tmp_path / "c", scheduler=schedule, sample_shape=SHAPE, sampler="pipeline", **{**QUICK, **option})
    except UsageError:
        assert option
    assert (tmp_path / "c").exists() == (not option)
    same(before, state(model))
    assert scheduler_state(schedule) == own
    assert world() == settings


@pytest.mark.parametrize("option", [{}, {"keep": {"no.such.layer": 8}}], ids=["done", "refused"])
def test_a_pipeline(tmp_path: Path, option: dict[str, Any]) -> None:
    pipeline = tiny_stable_diffusion()
    pipeline.text_encoder.train()
    pipeline.unet.half().train()
    pipeline.set_progress_bar_config(desc="mine")
    models = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    before, own, settings = {name: state(part) for name, part in models.items()}, whole(pipeline), world()
    try:
        quantize(pipeline, tmp_path / "c", prompts=["cat"], guidance_scale=2.0, **{**QUICK, **option})
    except UsageError:
        assert option
    assert (tmp_path / "c").exists() == (not option)
    for name, part in models.items():
        same(before[name], state(part))
    assert whole(pipeline) == own
    assert world() == settings


def test_an_offloaded_pipeline_gives_what_a_plain_one_gives(tmp_path: Path) -> None:
    plain, offloaded, moved = tiny_stable_diffusion(), tiny_stable_diffusion(), tiny_stable_diffusion()
    for name in ("unet", "text_encoder", "vae"):
        accelerate.cpu_offload(getattr(offloaded, name), "cpu")
    moved.enable_model_cpu_offload(device=torch.device("cpu"))
    moved.enable_attention_slicing(1)
    moved.text_encoder.train()  # dropout would make noise of the prompts
    before = whole(offloaded), whole(moved)
    found = [quantize(p, tmp_path / f"{i}", prompts=["cat"], **QUICK) for i, p in enumerate((plain, offloaded, moved))]
    assert (whole(offloaded), whole(moved)) == before
    files = [{name: entry.sha256 for name, entry in artifact.manifest.files.items()} for artifact in found]
    assert files[0] == files[1] == files[2]


def test_what_the_caller_has_set_for_all_of_torch_changes_nothing(tmp_path: Path) -> None:
    def made(name: str, model: nn.Module) -> dict[str, str]:
        made = quantize(model, tmp_path / name, scheduler=scheduler(), sample_shape=SHAPE, **{**QUICK, "iterations": 1})
        return {file: entry.sha256 for file, entry in made.manifest.files.items()}

    expected = made("plain", PlainUNet())
    with torch.inference_mode():
        assert made("inference", PlainUNet()) == expected
        assert torch.is_inference_mode_enabled()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert made("autocast", PlainUNet()) == expected
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_grad_enabled()
    model = PlainUNet()
    torch.set_default_dtype(torch.float64)
    try:
        assert made("double", model) == expected
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert made("meta", model) == expected


def test_a_size_that_a_pipeline_refuses_ends_with_the_option_that_sets_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"refuses to sample 1 prompts .*`height` and `width` have to be .*\n--height and --width"):
        quantize(tiny_stable_diffusion(), tmp_path / "c", prompts=["cat"], height=9, width=16, **QUICK)
