"""Adapters of peft on a real pipeline: fused into the copy that is quantized, or refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, StableDiffusionPipeline
from peft import LoraConfig

from dq_deploy.artifacts.details import Origin
from dq_deploy.errors import ArtifactError, EnvironmentProblem, UsageError
from dq_deploy.sources import Lora, load_source, module_source, reload_source, text_pipeline
from tests.tiny import scheduler, tiny_unet
from tests.tiny_pipelines import randomized, tiny_conditioned_unet, tiny_stable_diffusion

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2", "proj_in", "conv_shortcut"]


def with_adapters(*configs: LoraConfig, weights: list[float] | None = None) -> StableDiffusionPipeline:
    """A pipeline whose UNet has an adapter for each configuration, all active; their random weights matter."""
    pipeline = tiny_stable_diffusion()
    names = [f"adapter_{i}" for i in range(len(configs))]
    for name, config in zip(names, configs, strict=True):
        pipeline.unet.add_adapter(config, adapter_name=name)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in pipeline.unet.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    pipeline.unet.set_adapters(names, weights or [1.0] * len(names))
    return pipeline


def lora(targets: list[str] = ATTENTION, **options: Any) -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False, **options)


@torch.no_grad()
def output(unet: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    sample, texts = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 8, 16, generator=generator)
    result: torch.Tensor = unet(sample, torch.tensor([10.0, 700.0]), texts).sample
    return result


def assert_fused(pipeline: StableDiffusionPipeline) -> None:
    """The loaded copy computes what the pipeline's model does, is plain, and the pipeline keeps its adapters."""
    before = output(pipeline.unet)
    source = load_source(pipeline)
    torch.testing.assert_close(output(source.model), before, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name or "base_layer" in name for name in source.model.state_dict())
    assert list(source.model.state_dict()) == list(tiny_stable_diffusion().unet.state_dict())
    assert any("lora" in name for name in pipeline.unet.state_dict())
    torch.testing.assert_close(output(pipeline.unet), before, rtol=0, atol=0)
    copied = text_pipeline(source)
    assert copied.unet is source.model


@pytest.mark.parametrize(
    "configs",
    [
        [lora()],
        [lora(CONVOLUTIONS)],
        [lora(), lora(["to_q", *CONVOLUTIONS])],
        [lora(use_dora=True)],
        [lora(use_rslora=True)],
    ],
    ids=["attention", "convolutions", "two", "dora", "rslora"],
)
def test_active_adapters_are_fused_into_the_copy(configs: list[LoraConfig]) -> None:
    assert_fused(with_adapters(*configs, weights=[0.7, -0.4][: len(configs)]))


def test_an_adapter_that_is_off_or_fused_already_is_not_added() -> None:
    plain = output(tiny_stable_diffusion().unet)
    pipeline = with_adapters(lora())
    assert not torch.allclose(output(pipeline.unet), plain, atol=1e-2)
    pipeline.disable_lora()
    torch.testing.assert_close(output(load_source(pipeline).model), plain)
    pipeline.enable_lora()
    expected = output(pipeline.unet)
    pipeline.unet.fuse_lora()
    torch.testing.assert_close(output(load_source(pipeline).model), expected, rtol=1e-4, atol=1e-4)


def test_a_module_with_an_adapter_is_fused_too() -> None:
    pipeline = with_adapters(lora())
    source = module_source(pipeline.unet, pipeline.scheduler, (4, 8, 8))
    torch.testing.assert_close(output(source.model), output(pipeline.unet), rtol=1e-4, atol=1e-4)
    assert any("lora" in name for name in pipeline.unet.state_dict())


def test_adapters_that_no_weight_can_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import peft.tuners.lora.layer as layers

    pipeline = with_adapters(lora())
    monkeypatch.setattr(layers.Linear, "merge", lambda *_, **__: None)
    with pytest.raises(UsageError, match=r"adapter_0 \(lora\) on .*to_q is not a change of its weight alone: .* differs by .*\nfuse"):
        load_source(pipeline)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="on .*to_q cannot be fused: Impossible to merge LoRA with `lora_bias=True`"):
        load_source(with_adapters(lora(["to_q"], lora_bias=True)))
    # An embedding's adapter.
    unet = tiny_conditioned_unet(num_class_embeds=3)
    unet.add_adapter(lora(["class_embedding"]))
    with pytest.raises(UsageError, match="on class_embedding changes a Embedding, and only linear and convolution layers can be fused"):
        load_source(DDPMPipeline(unet=unet, scheduler=scheduler()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with lora.safetensors beside it: UNet and text encoder."""
    root = tmp_path_factory.mktemp("lora")
    pipeline = with_adapters(lora())
    pipeline.text_encoder.add_adapter(lora(["q_proj", "v_proj"]), adapter_name="adapter_0")
    randomized(pipeline.text_encoder, std=0.5)
    StableDiffusionPipeline.save_lora_weights(
        root,
        unet_lora_layers=_adapter(pipeline.unet),
        text_encoder_lora_layers=_adapter(pipeline.text_encoder),
        weight_name="lora.safetensors",
    )
    tiny_stable_diffusion().save_pretrained(root / "pipeline")
    return root


def _adapter(model: Any) -> dict[str, torch.Tensor]:
    from peft.utils import get_peft_model_state_dict

    return {k: v.contiguous() for k, v in get_peft_model_state_dict(model, adapter_name="adapter_0").items()}


def test_a_lora_file(saved: Path) -> None:
    pipeline = tiny_stable_diffusion()
    pipeline.load_lora_weights(str(saved), weight_name="lora.safetensors", adapter_name="a")
    pipeline.set_adapters(["a"], [0.5])
    source = load_source(saved / "pipeline", lora=Lora(saved / "lora.safetensors", 0.5))
    torch.testing.assert_close(output(source.model), output(pipeline.unet), rtol=1e-4, atol=1e-4)
    assert (source.name, source.reference) == ("pipeline", str(saved / "pipeline"))
    # The text encoder's part is at work in the pipeline that calibrates.
    copied = text_pipeline(source)
    texts, _ = copied.encode_prompt("cat", torch.device("cpu"), 1, False)
    expected, _ = pipeline.encode_prompt("cat", torch.device("cpu"), 1, False)
    torch.testing.assert_close(texts, expected)
    # What the manifest says is enough to load the very same weights again.
    again = reload_source(Origin(**source.origin), saved)
    assert again.sha256 == source.sha256 != load_source(saved / "pipeline").sha256
    assert source.origin["lora"]["scale"] == 0.5


def test_bad_lora_files(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path, source: Path = saved / "pipeline") -> None:
        load_source(source, lora=Lora(path))

    with pytest.raises(UsageError, match="the weight of the LoRA is nan"):
        load_source(saved / "pipeline", lora=Lora(tmp_path / "any.safetensors", float("nan")))
    with pytest.raises(UsageError, match="no such LoRA file: .*none.safetensors"):
        load(tmp_path / "none.safetensors")
    (tmp_path / "lora.bin").write_bytes(b"\x80")
    with pytest.raises(UsageError, match="lora.bin is not a .safetensors file\na pickle can run code"):
        load(tmp_path / "lora.bin")
    (tmp_path / "broken.safetensors").write_bytes(b"\x80" * 20)
    with pytest.raises(ArtifactError, match=r"broken.safetensors: not a valid safetensors file \(its header claims "):
        load(tmp_path / "broken.safetensors")
    DDPMPipeline(unet=tiny_unet(), scheduler=scheduler()).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(UsageError, match="a DDPMPipeline takes no LoRA"):
        load(saved / "lora.safetensors", tmp_path / "ddpm")
    with pytest.raises(UsageError, match="a LoRA file is for a pipeline folder or hub id"):
        load_source(tiny_stable_diffusion(), lora=Lora(saved / "lora.safetensors"))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(EnvironmentProblem, match="a LoRA needs peft"):
        load(saved / "lora.safetensors")
