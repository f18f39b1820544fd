"""Adapters of peft on a real pipeline: fused into the copy that is quantized, or refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from dq_deploy.artifacts.details import Origin
from dq_deploy.errors import ArtifactError, EnvironmentProblem, UsageError
from dq_deploy.sources import Lora, load_source, module_source, reload_source, text_pipeline
from tests.tiny import scheduler, tiny_unet
from tests.tiny_pipelines import randomized, tiny_conditioned_unet, tiny_pixart, tiny_stable_diffusion

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


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Of a LoRA file for the UNet alone: both matrices of eight linear layers."""
    return {f"unet.{name}": tensor for name, tensor in _adapter(with_adapters(lora()).unet).items()}


def _kohya(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same in kohya's names, with the alpha of ``lora``."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        layer, _, part = name.removeprefix("unet.").partition(".lora_")
        key = f"lora_unet_{layer.replace('.', '_')}"
        found |= {f"{key}.lora_{'down' if part.startswith('A') else 'up'}.weight": tensor, f"{key}.alpha": torch.tensor(3.0)}
    return found


@pytest.mark.parametrize("other", ["kohya", "half", "text encoder alone"])
def test_files_of_other_forms_are_taken_whole(
    saved: Path, tmp_path: Path, weights: dict[str, torch.Tensor], other: str, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = {
        f"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{side}.weight": torch.randn(shape)
        for side, shape in (("A", (2, 16)), ("B", (16, 2)))
    }
    forms = {"kohya": _kohya(weights), "half": {name: tensor.half() for name, tensor in weights.items()}, "text encoder alone": encoder}
    save_file(forms[other], tmp_path / "lora.safetensors")
    source = load_source(saved / "pipeline", lora=Lora(tmp_path / "lora.safetensors"))
    pipeline = tiny_stable_diffusion()
    if other != "text encoder alone":
        pipeline.load_lora_weights(forms[other])
    torch.testing.assert_close(output(source.model), output(pipeline.unet), rtol=1e-3, atol=1e-3)
    assert "LoRA keys" not in capfd.readouterr().err


def test_a_file_that_fits_in_part_is_refused(saved: Path, tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    def load(**tensors: torch.Tensor) -> None:
        save_file(tensors, tmp_path / "lora.safetensors")
        load_source(saved / "pipeline", lora=Lora(tmp_path / "lora.safetensors"))

    # Another network's layers beside this one's: diffusers would take the rest.
    foreign = {f"unet.up_blocks.9.attn.to_q.lora_{side}.weight": torch.randn(2, 2) for side in "AB"}
    with pytest.raises(ArtifactError, match=r"2 of the 18 matrices in .*lora.safetensors belong to no layer of this Stable"):
        load(**weights, **foreign)
    # Of an encoder with more layers: diffusers ends in an index out of range.
    layers = [f"text_encoder.text_model.encoder.layers.{number}.self_attn.q_proj" for number in (8, 9)]
    deep = {f"{layer}.lora_{side}.weight": torch.randn(2, 2) for layer in layers for side in "AB"}
    with pytest.raises(ArtifactError, match=r"4 of the 20 matrices in .* belong to no layer of this Stable.*: text_encoder.*layers.8"):
        load(**weights, **deep)
    peft = {name.replace("unet", "base_model.model"): tensor for name, tensor in weights.items()}
    with pytest.raises(
        ArtifactError, match=r"16 of the 16 matrices .*: base_model.model.down_.* and 13 more\n.*needs its adapter_config.json"
    ):
        load(**peft)
    lost = next(name for name in weights if "lora_B" in name)
    with pytest.raises(ArtifactError, match=r"is not whole: .* lacks unet.*attn1.to_..lora_B"):
        load(**{name: tensor for name, tensor in weights.items() if name != lost})
    with pytest.raises(ArtifactError, match=r"lora.safetensors: NaN or infinite values in 1 of 16 tensors: "):
        load(**weights | {lost: weights[lost] * float("nan")})


def test_a_file_that_peft_saved_goes_into_any_network(tmp_path: Path) -> None:
    """PixArt's pipeline has no loader for LoRAs in diffusers."""
    tiny_pixart().save_pretrained(tmp_path / "pipeline")
    adapted = get_peft_model(tiny_pixart().transformer, lora(["to_q", "to_v"], use_rslora=True))
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    source = load_source(tmp_path / "pipeline", lora=Lora(file, 0.5))
    whole, plain, half = adapted.merge_and_unload().state_dict(), tiny_pixart().transformer.state_dict(), source.model.state_dict()
    assert half.keys() == plain.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(half[name], weight + (whole[name] - weight) / 2, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(half[name], plain[name]) for name in plain)
    assert reload_source(Origin(**source.origin), tmp_path).sha256 == source.sha256
    cut = {name: tensor for name, tensor in load_file(file).items() if "lora_B" in name}
    save_file(cut, file)
    with pytest.raises(ArtifactError, match="does not fit the PixArtTransformer2DModel: 8 of its matrices are missing: .*lora_A"):
        load_source(tmp_path / "pipeline", lora=Lora(file))
    save_file({"base_model.model.nowhere.lora_A.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(ArtifactError, match="1 of its matrices belong to no layer of it: nowhere"):
        load_source(tmp_path / "pipeline", lora=Lora(file))
    config = tmp_path / "adapter" / "adapter_config.json"
    fields = json.loads(config.read_text(encoding="utf-8"))
    for changed, told in (
        ({"target_modules": ["nowhere"]}, "cannot load the LoRA .* into a PixArtTransformer2DModel: "),
        ({"peft_type": "IA3"}, "adapter_config.json is not that of a LoRA, and no other adapter is read from a file"),
        ({"r": "many"}, "adapter_config.json is not a configuration that this peft reads|cannot load the LoRA"),
    ):
        config.write_text(json.dumps(fields | changed), encoding="utf-8")
        with pytest.raises(ArtifactError, match=told):
            load_source(tmp_path / "pipeline", lora=Lora(file))
    config.unlink()
    with pytest.raises(UsageError, match="a PixArtAlphaPipeline takes no LoRA of diffusers' form\none that peft saved goes into any"):
        load_source(tmp_path / "pipeline", lora=Lora(file))


def test_adapters_that_are_not_finite_are_named_with_the_weights() -> None:
    pipeline = with_adapters(lora(["to_q"]))
    pipeline.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.lora_B["adapter_0"].weight.data[0, 0] = float("inf")
    with pytest.raises(ArtifactError, match=r"NaN or infinite values in 1 of \d+ tensors: down_blocks.0.*attn1.to_q.weight"):
        load_source(pipeline)
