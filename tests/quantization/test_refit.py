"""A LoRA into a checkpoint without calibration: other integers in the old scales."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.decibels import snr_db
from dq_deploy.engines.dropin import load
from dq_deploy.errors import UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.quantization.refit import refit
from dq_deploy.quantization.weights import QuantizedWeight
from dq_deploy.report.recipe import commands
from dq_deploy.sampling import Drawing, draw
from tests.command_line import Cli, assert_refused
from tests.tiny_pipelines import (
    tiny_conditioned_unet,
    tiny_controlnet,
    tiny_ip_adapter,
    tiny_lora,
    tiny_picture,
    tiny_stable_diffusion,
)

QUICK: dict[str, Any] = {
    "steps": 3, "calibration_samples": 4, "iterations": 0, "max_float_share": 0.4, "final_samples": 0, "prompts": ["a cat", "dog"],
    "guidance_scale": 1.0, "dilation": "symmetric",
}  # fmt: skip
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, and a LoRA for it that matters."""
    root = tmp_path_factory.mktemp("refit")
    pipeline = tiny_stable_diffusion()
    pipeline.save_pretrained(root / "pipeline")
    tiny_lora(root / "lora", pipeline.unet, _TARGETS)
    return root


@pytest.fixture(scope="module")
def plain(folder: Path) -> Artifact:
    """W8A8 with dilations, many of them folded, and the nearest codes."""
    return quantize(folder / "pipeline", folder / "plain", rounding="nearest", **QUICK)


@pytest.fixture(scope="module")
def styled(plain: Artifact, folder: Path) -> Artifact:
    return refit(plain, folder / "styled", lora=lora(folder), lora_scale=0.8)


def lora(folder: Path) -> Path:
    return folder / "lora" / "pytorch_lora_weights.safetensors"


def codes(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: layer.frozen[0] for name, layer in checkpoint.layers.items() if isinstance(layer, QuantizedWeight)}  # type: ignore[index]


def snr(artifact: Artifact) -> list[float]:
    found: list[float] = artifact.manifest.details["snr_db"]["after_distillation"]
    return found


def test_only_what_the_lora_changes_has_other_codes_in_the_same_scales(plain: Artifact, styled: Artifact) -> None:
    before, after = load_checkpoint(plain.path), load_checkpoint(styled.path)
    changed = styled.manifest.details["refit"]["layers"]
    assert commands(styled) == ["dq-deploy refit CHECKPOINT -o styled --lora LORA --lora-scale 0.8"]
    assert changed
    assert 0 <= styled.manifest.details["refit"]["clipped_weights"] < 0.1
    assert all(any(target in name for target in _TARGETS) for name in changed)
    assert any(entry.folded_into for entry in before.details.dilation)  # or this shows nothing of folding
    for name, layer in before.layers.items():
        own: Any = after.layers[name]
        if isinstance(layer, QuantizedWeight):
            assert layer.frozen is not None
            assert torch.equal(layer.frozen[1], own.frozen[1])
            assert torch.equal(layer.frozen[0], own.frozen[0]) == (name not in changed)
    for name, quantizer in before.quantizers.items():
        assert torch.equal(quantizer.scale_table(), after.quantizers[name].scale_table())
    assert styled.manifest.timesteps == plain.manifest.timesteps


def test_it_is_the_float_model_with_the_lora(plain: Artifact, styled: Artifact, folder: Path, tmp_path: Path) -> None:
    again = quantize(
        folder / "pipeline", tmp_path / "again", rounding="nearest", lora=lora(folder), lora_scale=0.8, **QUICK
    )  # fmt: skip
    assert styled.manifest.details["source"]["sha256"] == again.manifest.details["source"]["sha256"]
    assert fmean(snr(styled)) > fmean(snr(again)) - 6  # scales are those of other weights
    old, reference = load_checkpoint(plain.path), load_checkpoint(styled.path).reference()
    left_as_it_was = [
        snr_db(expected, _call(old, reference.samples[row], reference.timesteps[row], reference.given(row)))
        for row, expected in enumerate(reference.outputs)
    ]
    assert fmean(snr(styled)) > fmean(left_as_it_was) + 3


@torch.no_grad()
def _call(checkpoint: Checkpoint, sample: torch.Tensor, timestep: torch.Tensor, conditions: dict[str, torch.Tensor]) -> torch.Tensor:
    values = {"sample": sample, "timestep": timestep.repeat(len(sample)), **conditions}
    result: torch.Tensor = checkpoint.model(*[values[name] for name in checkpoint.details.inputs])
    return result


def test_there_and_back_gives_the_codes_that_were(plain: Artifact, styled: Artifact, tmp_path: Path) -> None:
    """Dilations and folds are undone and done again without a trace, but for a tie or two."""
    refitted = refit(styled, tmp_path / "back", lora=None)
    assert commands(refitted) == ["dq-deploy refit CHECKPOINT -o back --no-lora"]
    back = load_checkpoint(refitted.path)
    assert back.details.source is not None
    assert back.details.source.lora is None
    for name, expected in codes(load_checkpoint(plain.path)).items():
        apart = (codes(back)[name].int() - expected.int()).abs()
        assert int(apart.max()) <= 1, name
        assert int(apart.sum()) <= 1, name


def test_gptq_rounds_by_the_samples_that_a_checkpoint_carries(plain: Artifact, folder: Path, tmp_path: Path) -> None:
    made = refit(plain, tmp_path / "gptq", lora=lora(folder), lora_scale=0.8, rounding="gptq")
    assert commands(made) == ["dq-deploy refit CHECKPOINT -o gptq --lora LORA --lora-scale 0.8 --rounding gptq"]
    records = made.manifest.details["rounding"]
    assert {record["layer"] for record in records} == set(made.manifest.details["refit"]["layers"])
    assert min(record["error_ratio"] for record in records) < 1
    assert load_checkpoint(made.path).reference().samples.shape == load_checkpoint(plain.path).reference().samples.shape


def test_a_distilled_checkpoint_keeps_what_it_learned(folder: Path, tmp_path: Path) -> None:
    trained = quantize(folder / "pipeline", tmp_path / "trained", **{**QUICK, "iterations": 3, "batch_size": 4, "judged_samples": 0})
    made = refit(trained, tmp_path / "styled", lora=lora(folder), lora_scale=0.8, rounding="nearest")
    back = codes(load_checkpoint(refit(made, tmp_path / "back", lora=None, rounding="nearest").path))
    between = codes(load_checkpoint(made.path))
    for name, old in codes(load_checkpoint(trained.path)).items():
        inside = between[name].int().abs() < 127  # what the LoRA moves beyond the range is lost
        apart = (back[name].int() - old.int()).abs()[inside]
        assert int(apart.max()) <= 1, name  # the LoRA is rounded, on the way there and on the way back, and nothing else


def test_from_the_command_line_to_a_bundle_that_passes(plain: Artifact, folder: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("refit", plain.path, "-o", tmp_path / "new", "--lora", lora(folder), "--lora-scale", "0.8", "--format", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["manifest"]["details"]["source"]["lora"]["scale"] == 0.8
    bundle = export(tmp_path / "new", tmp_path / "bundle", target="onnxruntime")
    checked = cli("check", bundle.path, "--checkpoint", tmp_path / "new")
    assert checked.code == 0, checked.err
    assert_refused(cli("refit", plain.path, "-o", tmp_path / "other"), 2, "a refit is with other weights, and none are given")
    assert_refused(cli("refit", plain.path, "-o", tmp_path / "other", "--lora", "none.safetensors"), 2, "no such LoRA file")
    assert_refused(cli("refit", plain.path, "-o", tmp_path / "other", "--no-lora"), 2, "changes nothing of")
    scale = cli("refit", plain.path, "-o", tmp_path / "other", "--no-lora", "--lora-scale", "2")
    assert_refused(scale, 2, "--lora-scale is the weight of a LoRA, and none is given")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("beside", ["IP-Adapter", pytest.param("ControlNet", marks=pytest.mark.nightly)])
def test_a_lora_beside_an_adapter_or_a_controlnet(beside: str, tmp_path: Path) -> None:
    """The refitted network has both: it is what quantizing with both has, in the old scales."""
    pipeline = tiny_stable_diffusion(mid_block_type="UNetMidBlock2DCrossAttn")
    pipeline.save_pretrained(tmp_path / "pipeline")
    file = tiny_lora(tmp_path / "lora", pipeline.unet, _TARGETS)
    if beside == "IP-Adapter":
        adapter = tiny_ip_adapter(tmp_path / "adapter", pipeline.unet)
        given: dict[str, Any] = {"ip_adapter": adapter, "ip_adapter_scale": 0.6, "ip_adapter_image": tiny_picture()}
    else:
        tiny_controlnet(pipeline.unet).save_pretrained(tmp_path / "controlnet")
        given = {"controlnet": tmp_path / "controlnet", "control_image": tiny_picture()}
    options = {**QUICK, **given, "rounding": "nearest", "dilation": "none"}
    plain = quantize(tmp_path / "pipeline", tmp_path / "plain", **options)
    styled = refit(plain, tmp_path / "styled", lora=file)
    again = quantize(tmp_path / "pipeline", tmp_path / "again", lora=file, **options)
    assert styled.manifest.details["source"] == again.manifest.details["source"]
    assert styled.details.input_names == again.details.input_names
    changed = styled.manifest.details["refit"]["layers"]
    assert changed
    assert not any("_ip" in name for name in changed)
    assert fmean(snr(styled)) > fmean(snr(again)) - 6
    drawing = Drawing(
        n=1, prompts=["a cat"], compare_float=True, **{name: value for name, value in given.items() if name.endswith("image")}
    )
    assert min(draw(styled, drawing).psnr_db or [0.0]) > 20


def test_another_scale_of_an_ip_adapter(tmp_path: Path, cli: Cli) -> None:
    """A number in the graph: it is what quantizing with that scale has, in the old scales, and the drop-in says it."""
    pipeline = tiny_stable_diffusion()
    pipeline.save_pretrained(tmp_path / "pipeline")
    adapter, picture = tiny_ip_adapter(tmp_path / "adapter", pipeline.unet), tmp_path / "a.png"
    tiny_picture().save(picture)
    options = {**QUICK, "rounding": "nearest", "dilation": "none", "ip_adapter": adapter, "ip_adapter_image": picture}
    first = quantize(tmp_path / "pipeline", tmp_path / "first", ip_adapter_scale=1.0, **options)
    again = quantize(tmp_path / "pipeline", tmp_path / "again", ip_adapter_scale=0.3, **options)
    bundle = export(first, tmp_path / "bundle", target="onnxruntime")
    ended = cli("refit", bundle.path, "--checkpoint", first.path, "-o", tmp_path / "weak", "--ip-adapter-scale", "0.3")
    assert ended.code == 0, ended.err
    refitted = open_artifact(tmp_path / "weak.checkpoint", "checkpoint")
    assert commands(refitted) == ["dq-deploy refit CHECKPOINT -o weak.checkpoint --ip-adapter-scale 0.3"]
    assert refitted.manifest.details["source"] == again.manifest.details["source"]
    assert refitted.manifest.details["model_config"] == again.manifest.details["model_config"]
    assert fmean(snr(refitted)) > fmean(snr(again)) - 3
    scales = [processor.scale[0] for processor in load(tmp_path / "weak").attn_processors.values()]
    assert set(scales) == {0.3}
    drawn = draw(tmp_path / "weak", Drawing(n=1, prompts=["a cat"], ip_adapter_image=picture))
    assert min(drawn.psnr_db or [0.0]) > 25
    strong = draw(bundle, Drawing(n=1, prompts=["a cat"], ip_adapter_image=picture, compare_float=False))
    assert abs(strong.quantized - drawn.quantized).max() > 1e-2
    assert_refused(cli("refit", first.path, "-o", tmp_path / "out", "--ip-adapter-scale", "1"), 2, "a scale of 1 changes nothing of")
    both = cli("refit", first.path, "-o", tmp_path / "out", "--ip-adapter-scale", "0.5", "--no-lora")
    assert_refused(both, 2, "--no-lora and --ip-adapter-scale are given", "refit twice")


def test_a_scale_without_an_ip_adapter(plain: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no IP-Adapter, and a scale for one is given\nleave --ip-adapter-scale out"):
        refit(plain, tmp_path / "out", ip_adapter_scale=0.5)


@pytest.mark.nightly
def test_a_fine_tuned_controlnet_in_the_scales_of_another(tmp_path: Path) -> None:
    pipeline = tiny_stable_diffusion(mid_block_type="UNetMidBlock2DCrossAttn")
    pipeline.save_pretrained(tmp_path / "pipeline")
    own = tiny_controlnet(pipeline.unet)
    own.save_pretrained(tmp_path / "own")
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(0.9)
    own.save_pretrained(tmp_path / "tuned")
    checkpoint = quantize(tmp_path / "own", tmp_path / "checkpoint", pipeline=tmp_path / "pipeline", control_image=tiny_picture(), **QUICK)
    tuned = refit(checkpoint, tmp_path / "refitted", source=tmp_path / "tuned")
    assert tuned.manifest.details["refit"]["layers"]
    assert tuned.details.source is not None
    assert tuned.details.source.pipeline == checkpoint.details.source.pipeline  # type: ignore[union-attr]
    assert fmean(snr(tuned)) > fmean(snr(checkpoint)) - 6


def test_what_cannot_be_refitted(folder: Path, tmp_path: Path) -> None:
    unet, texts = tiny_conditioned_unet(), torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    options = {name: value for name, value in QUICK.items() if name not in ("prompts", "guidance_scale")}
    made = quantize(
        unet, tmp_path / "module", scheduler=DDIMScheduler(clip_sample=False), sample_shape=(4, 8, 8),
        conditions={"encoder_hidden_states": texts}, **options,
    )  # fmt: skip
    with pytest.raises(UsageError, match="unknown rounding 'up'\nroundings: nearest, gptq"):
        refit(made, tmp_path / "out", lora=lora(folder), rounding="up")
    with pytest.raises(UsageError, match="was made from a model in memory, which cannot be loaded again"):
        refit(made, tmp_path / "out", lora=lora(folder))
