"""Pipelines from pictures that go by another way than a folder and options: an object of Python, or the network as a module."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPipeline, QwenImageEditPlusPipeline

import dq_deploy
from dq_deploy.decibels import psnr_db
from dq_deploy.errors import UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from tests.picture_pipelines import tiny_ltx_from_image, tiny_qwen_image_edit
from tests.tiny_pipelines import tiny_picture

QUICK: dict[str, Any] = {
    "steps": 2, "calibration_samples": 2, "iterations": 0, "dilation": "none", "max_float_share": 0.6, "final_samples": 0,
}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [QwenImageEditPipeline, QwenImageEditPlusPipeline])
def test_qwen_image_edit(kind: Any, tmp_path: Path) -> None:
    """From the pipeline object: its processor in a folder asks for torchvision."""
    pipeline = tiny_qwen_image_edit(kind)
    pipeline.set_progress_bar_config(disable=True)

    def drawn(number: int) -> Any:
        generator = torch.Generator().manual_seed(1)
        picture = tiny_picture(number, (64, 64))
        return pipeline(prompt="a cat", image=picture, num_inference_steps=2, generator=generator, output_type="np").images

    expected = drawn(0)
    pictures = [tiny_picture(number, (64, 64)) for number in (0, 1)]
    checkpoint = quantize(pipeline, tmp_path / "checkpoint", prompts=["a cat", "a dog"], image=pictures, **QUICK)
    assert checkpoint.manifest.details["calibration"]["pipeline"] == kind.__name__
    pipeline.transformer = dq_deploy.load(export(checkpoint, tmp_path / "bundle", target="onnxruntime"))
    got = drawn(0)
    assert got.shape == (1, 1024, 1024, 3)
    assert psnr_db(expected, got)[0] > 25
    assert psnr_db(got, drawn(1))[0] < 60  # another picture


class OneTimestep(torch.nn.Module):
    """LTX-Video's network with one timestep for a sample, and which of its tokens are known: these have timestep 0."""

    def __init__(self, network: Any, **fixed: Any) -> None:
        super().__init__()
        self.network, self.fixed = network, fixed

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        known: torch.Tensor,
    ) -> torch.Tensor:
        """See the class."""
        each = timestep[:, None] * (1 - known)
        output: torch.Tensor = self.network(
            hidden_states, encoder_hidden_states, each, encoder_attention_mask, return_dict=False, **self.fixed
        )[0]
        return output


class InItsPipeline(torch.nn.Module):
    """The bundle of ``OneTimestep`` as LTX-Video's pipeline calls its network."""

    def __init__(self, drop_in: Any, network: Any) -> None:
        super().__init__()
        self.drop_in, self.config, self.cache_context = drop_in, network.config, network.cache_context
        self.dtype, self.device = network.dtype, network.device

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, **given: Any) -> tuple[torch.Tensor]:
        """See the class."""
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        return (self.drop_in(hidden_states, timestep.amax(dim=1), **tensors, known=(timestep == 0).float()).sample,)


@pytest.mark.nightly
def test_ltx_video_from_a_picture_goes_as_a_module(tmp_path: Path) -> None:
    pipeline, size = tiny_ltx_from_image(), {"height": 32, "width": 32, "num_frames": 9}

    def drawn(**options: Any) -> Any:
        given = {"output_type": "np", "guidance_scale": 1.0, "num_inference_steps": 2, **size, **options}
        return pipeline(image=tiny_picture(0, (32, 32)), prompt="a cat", generator=torch.Generator().manual_seed(1), **given).frames

    with pytest.raises(UsageError, match="the pipeline mixes the timesteps .* in one batch.*\n.*a module that takes one timestep"):
        quantize(pipeline, tmp_path / "none", prompts=["a cat"], image=tiny_picture(0, (32, 32)), height=32, width=32, frames=9, **QUICK)
    seen = SimpleNamespace()
    network, own = pipeline.transformer, pipeline.transformer.forward

    def noting(*args: Any, **given: Any) -> Any:
        seen.given = {**dict(zip(("hidden_states",), args, strict=False)), **given}
        return own(*args, **given)

    network.forward = noting
    expected = drawn()
    del network.forward
    fixed = {name: seen.given[name] for name in ("num_frames", "height", "width", "rope_interpolation_scale")}
    checkpoint = quantize(
        OneTimestep(network, **fixed), tmp_path / "checkpoint", scheduler=FlowMatchEulerDiscreteScheduler(),
        sample_shape=tuple(seen.given["hidden_states"].shape[1:]),
        conditions={
            **{name: seen.given[name] for name in ("encoder_hidden_states", "encoder_attention_mask")},
            "known": (seen.given["timestep"] == 0).float(),
        },
        **QUICK,
    )  # fmt: skip
    bundle = export(checkpoint, tmp_path / "bundle", target="onnxruntime")
    pipeline.transformer = InItsPipeline(dq_deploy.load(bundle), network)
    assert psnr_db(expected, drawn())[0] > 20
