"""Networks that are called with more than tensors, or give back more than one, from the module to the bundle in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, FlowMatchEulerDiscreteScheduler, ZImagePipeline
from diffusers.models.controlnets.controlnet import ControlNetOutput
from torch import nn

import dq_deploy
from dq_deploy.artifacts import Artifact
from dq_deploy.engines.dropin import DropInModel
from dq_deploy.errors import UsageError
from dq_deploy.quantization.calibration.recording import Call, recording
from dq_deploy.quantization.calling import call_record, from_conditions
from dq_deploy.quantization.graph.capture import capture
from dq_deploy.quantization.graph.positional import input_names
from tests.tiny import FAST, scheduler, snr_db
from tests.tiny_pipelines import randomized, tiny_conditioned_unet, tiny_vae, tiny_z_image

SHAPE = (4, 8, 8)
N = 3


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(module: nn.Module, root: Path, **conditions: Any) -> Artifact:
    options: dict[str, Any] = {"scheduler": scheduler(), "sample_shape": SHAPE, **FAST, "dilation": "none"}
    return dq_deploy.quantize(module, root / "checkpoint", conditions=conditions, **options)


def tiny_controlnet() -> Any:
    torch.manual_seed(3)
    return randomized(
        ControlNetModel(
            block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, attention_head_dim=4, cross_attention_dim=16,
            down_block_types=("CrossAttnDownBlock2D",), conditioning_embedding_out_channels=(4, 8),
        )
    )  # fmt: skip


def test_a_controlnet_gives_all_its_residuals(tmp_path: Path) -> None:
    net, text, picture = tiny_controlnet(), numbers(N, 8, 16), numbers(N, 3, 16, 16)
    checkpoint = quantized(net, tmp_path, encoder_hidden_states=text, controlnet_cond=picture, conditioning_scale=0.5)
    assert checkpoint.manifest.details["calibration"]["from"] == "noise"
    bundle = dq_deploy.export(checkpoint, tmp_path / "bundle", target="qdq", dtype="fp32")
    assert dq_deploy.check(bundle, checkpoint)
    model = dq_deploy.load(bundle, runtime="onnxruntime")
    x = numbers(N, *SHAPE, seed=1)
    with torch.no_grad():
        expected = net(x, torch.tensor(500.0), text, controlnet_cond=picture, conditioning_scale=0.5)
    got = model(x, 500, text, controlnet_cond=picture, conditioning_scale=0.5)
    assert isinstance(got, ControlNetOutput)
    down, mid = model(x, 500, text, picture, 0.5, return_dict=False)
    for given in ([*got.down_block_res_samples, got.mid_block_res_sample], [*down, mid]):
        for a, b in zip([*expected.down_block_res_samples, expected.mid_block_res_sample], given, strict=True):
            assert a.shape == b.shape
            assert snr_db(a, b) > 25
    with pytest.raises(UsageError, match="conditioning_scale is 1.0, and the graph was made with 0.5"):
        model(x, 500, text, picture, 1.0)
    with pytest.raises(UsageError, match="guess_mode is True, and the graph was made with False"):
        model(x, 500, text, picture, 0.5, guess_mode=True)


def test_several_outputs_of_a_flow_are_calibrated_on_noise_too(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x: torch.Tensor, sigma: torch.Tensor, shift: torch.Tensor) -> list[torch.Tensor]:
            h = torch.relu(self.convolutions[0](x) + sigma.reshape(-1, 1, 1, 1) / 1000 + shift)
            return [self.convolutions[1](h), self.convolutions[2](h).mean((2, 3))]

    flow, net = FlowMatchEulerDiscreteScheduler(), Pair().eval()
    options: dict[str, Any] = {"scheduler": flow, "sample_shape": SHAPE, "conditions": {"shift": numbers(2, 4, 1, 1)}, **FAST}
    checkpoint = dq_deploy.quantize(net, tmp_path / "checkpoint", **options)
    bundle = dq_deploy.export(checkpoint, tmp_path / "bundle", target="onnxruntime")
    x, shift = numbers(N, *SHAPE), numbers(N, 4, 1, 1, seed=2)
    with torch.no_grad():
        expected = net(x, torch.full((N,), 250.0), shift)
    got = dq_deploy.load(bundle, runtime="onnxruntime")(x, sigma=250.0, shift=shift)
    assert [t.shape for t in got] == [(N, 4, 8, 8), (N, 4)]
    assert min(snr_db(a, b) for a, b in zip(expected, got, strict=True)) > 25
    with pytest.raises(UsageError, match="and Pair returns several tensors, which are not a prediction to guide"):
        dq_deploy.quantize(net, tmp_path / "other", guidance_scale=2.0, null_conditions={"shift": numbers(1, 4, 1, 1)}, **options)


def test_a_unet_with_residuals_and_an_image_prompt(tmp_path: Path) -> None:
    torch.manual_seed(5)
    net = tiny_conditioned_unet(mid_block_type="UNetMidBlock2DCrossAttn", addition_embed_type="image", encoder_hid_dim=16)
    text, residuals, mid = numbers(N, 8, 16), tuple(numbers(N, 8, 8, 8, seed=i) for i in range(2)), numbers(N, 8, 8, 8, seed=9)
    call: dict[str, Any] = {
        "encoder_hidden_states": text,
        "added_cond_kwargs": {"image_embeds": numbers(N, 16)},
        "down_block_additional_residuals": residuals,
        "mid_block_additional_residual": mid,
        "cross_attention_kwargs": {"scale": 1.0},
    }
    checkpoint = quantized(net, tmp_path, **call)
    assert checkpoint.manifest.details["inputs"] == [
        "sample", "timestep", "encoder_hidden_states", "down_block_additional_residuals_0", "down_block_additional_residuals_1",
        "mid_block_additional_residual", "image_embeds",
    ]  # fmt: skip
    model = dq_deploy.load(dq_deploy.export(checkpoint, tmp_path / "bundle", target="qdq", dtype="fp32"), runtime="openvino")
    x = numbers(N, *SHAPE, seed=1)
    with torch.no_grad():
        expected = net(x, torch.tensor(500.0), **call).sample
        without = net(x, torch.tensor(500.0), **(call | {"mid_block_additional_residual": 2 * mid})).sample
    assert snr_db(expected, model(x, 500, **call).sample) > 20 > snr_db(expected, without)
    with pytest.raises(UsageError, match="down_block_additional_residuals is None, and the graph was made with 2 of them"):
        model(x, 500, **(call | {"down_block_additional_residuals": None}))


def test_a_network_that_takes_lists_is_a_graph_of_whole_batches() -> None:
    net = tiny_z_image()
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=tiny_vae(), text_encoder=None, tokenizer=None, transformer=net
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    texts = list(numbers(2, 7, 16))

    def drawn() -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        call: dict[str, Any] = {"prompt_embeds": texts, "height": 16, "width": 16, "guidance_scale": 0.0, "num_inference_steps": 2}
        images: torch.Tensor = pipeline(**call, generator=generators, output_type="latent").images
        return images

    expected = drawn()
    calls: list[Call] = []
    with recording(net, calls.append):
        drawn()
    form, shape = calls[0].form, calls[0].sample.shape
    assert (list(shape), list(calls[0].conditions)) == ([2, 4, 1, 8, 8], ["cap_feats"])
    assert from_conditions(net, {"cap_feats": torch.stack(texts)})[0] == form
    names = input_names(net, ["cap_feats"], form)
    examples = {"x": calls[0].sample, "timestep": torch.tensor([0.1, 0.7]), **calls[0].conditions}
    graph = capture(net, {name: examples[name] for name in names}, form=form)
    record = call_record(form, graph.meta["output"], names, type(net).__name__)

    def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        output: torch.Tensor = graph(*[inputs[name] for name in names])
        return output

    pipeline.register_modules(transformer=DropInModel(forward, names, dict(net.config), call=record))
    torch.testing.assert_close(drawn(), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match=r"cap_feats has entries of the shapes \[5, 16\], \[7, 16\], and a batch of the graph has one\n"):
        pipeline.transformer(list(numbers(2, 4, 1, 8, 8)), torch.zeros(2), [texts[0], texts[1][:5]])
