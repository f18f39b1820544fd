"""What a source is calibrated on, from ``quantize`` and from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DiTPipeline, DPMSolverMultistepScheduler
from peft import LoraConfig

from dq_deploy import cli
from dq_deploy.accuracy import check
from dq_deploy.engines.build.plan import default_batch
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization import load_checkpoint, quantize
from tests.tiny import SHAPE, PlainUNet, scheduler, snr_db, tiny_unet
from tests.tiny_pipelines import tiny_dit, tiny_stable_diffusion, tiny_stable_diffusion_xl

FAST: dict[str, Any] = {
    "steps": 3, "calibration_samples": 3, "reference_samples": 1, "iterations": 0, "batch_size": 8, "max_float_share": 0.5,
    "dilation": "none",
}  # fmt: skip


def dit_pipeline(own: Any = None) -> DiTPipeline:
    return DiTPipeline(transformer=tiny_dit(), vae=None, scheduler=own or scheduler())


def test_a_class_conditional_model_by_default_sees_every_class(tmp_path: Path) -> None:
    pipeline = dit_pipeline(DPMSolverMultistepScheduler())  # has an infinity in its configuration, which a manifest must hold
    artifact = quantize(pipeline, tmp_path / "out", sampler="pipeline", **{**FAST, "calibration_samples": 5})
    assert artifact.manifest.scheduler is not None
    assert artifact.manifest.scheduler["class"] == "DPMSolverMultistepScheduler"
    assert artifact.manifest.scheduler["calibrated_with"] == {
        "class": "DPMSolverMultistepScheduler",
        "why": "as asked for: --sampler pipeline",
    }
    assert artifact.manifest.details["calibration"] == {
        "from": "loop",
        "classes": [0, 1, 2, 3, 4],
        "guidance_scale": None,
        "scheduler": "DPMSolverMultistepScheduler",
    }
    assert artifact.manifest.details["conditions"] == {"class_labels": {"dtype": "int64", "shape": []}}
    assert artifact.manifest.details["samples_per_seed"] == 1
    reference = load_checkpoint(artifact.path).reference()
    assert reference.conditions["class_labels"].dtype == torch.int64
    assert reference.conditions["class_labels"].tolist() == [0]


def test_a_guided_transformer_all_the_way(tmp_path: Path) -> None:
    options = {**FAST, "reference_samples": 2, "calibration_samples": 4}
    artifact = quantize(dit_pipeline(), tmp_path / "out", classes="1,3", guidance_scale=3.0, **options)
    checkpoint = load_checkpoint(artifact.path)
    reference = checkpoint.reference()
    assert reference.per_seed == 2
    assert reference.conditions["class_labels"].tolist() == [1, 5, 3, 5]
    with torch.no_grad():
        got = checkpoint.model(reference.samples[1], reference.timesteps[1].expand(4), reference.conditions["class_labels"])
    assert snr_db(reference.outputs[1], got) > 25
    assert check(export(artifact, tmp_path / "qdq", target="qdq", dtype="fp32"), artifact)


def test_a_unet_with_classes_has_no_null_class(tmp_path: Path) -> None:
    pipeline = DDPMPipeline(unet=tiny_unet(num_class_embeds=4), scheduler=scheduler())
    with pytest.raises(UsageError, match="the model has no null class, and guidance needs one\nleave the guidance scale out"):
        quantize(pipeline, tmp_path / "out", guidance_scale=3.0, **FAST)


def test_a_plain_module_is_guided_with_tensors(tmp_path: Path) -> None:
    class Conditioned(PlainUNet):
        def forward(self, x: torch.Tensor, t: torch.Tensor, *, shift: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x + shift[:, :, None, None], t)

    given: dict[str, Any] = {"scheduler": scheduler(), "sample_shape": SHAPE, **FAST}
    shifts = {"shift": torch.tensor([[0.5], [1.0]])}
    null = {"shift": torch.zeros(1, 1)}
    artifact = quantize(Conditioned(), tmp_path / "out", conditions=shifts, null_conditions=null, guidance_scale=2.0, **given)
    assert load_checkpoint(artifact.path).reference().conditions["shift"].flatten().tolist() == [0.5, 0.0]
    with pytest.raises(UsageError, match="guidance needs the conditions of the unconditional half for shift\ngive null_conditions="):
        quantize(Conditioned(), tmp_path / "none", conditions=shifts, guidance_scale=2.0, **given)
    with pytest.raises(UsageError, match="null_conditions= are for guidance"):
        quantize(Conditioned(), tmp_path / "none", conditions=shifts, null_conditions=null, **given)
    with pytest.raises(UsageError, match="no values for the condition shift"):
        quantize(Conditioned(), tmp_path / "none", conditions={"shift": torch.zeros(0, 1)}, **given)
    with pytest.raises(UsageError, match="give conditions=, or prompts or classes, not both"):
        quantize(Conditioned(), tmp_path / "none", conditions=shifts, classes="0", **given)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        ("unconditional", {"classes": "0"}, "classes are given, and a DDPMPipeline takes none"),
        ("unconditional", {"guidance_scale": 3.0}, "a guidance scale is given, and a DDPMPipeline is unconditional"),
        ("unconditional", {"prompts": ["cat"]}, "prompts are given, and a DDPMPipeline takes none\n.*--classes"),
        ("unconditional", {"height": 64}, "a picture size is given, and a DDPMPipeline has its own"),
        ("sizeless", {}, r"object:DDPMPipeline: .* gives no sample shape \(in_channels 1, sample_size None\)"),
        ("classes", {"classes": "0-5"}, "no class 5: the model has classes 0 to 4"),
        ("classes", {"classes": "zero"}, "classes are numbers and ascending ranges .* not 'zero'"),
        ("classes", {"prompts": ["cat"]}, "prompts are given, and a DiTPipeline takes none"),
        ("text", {}, r"a StableDiffusionPipeline is calibrated on prompts, and none are given\nwrite typical prompts .*--prompts FILE"),
        ("text", {"negative_prompt": "ugly"}, "calibrated on prompts, and none are given"),
        ("text", {"prompts": ["cat"], "height": 17, "width": 16}, "refuses to sample 1 prompts .* 17 and 16"),
        ("text", {"classes": "0"}, "classes are given, and a StableDiffusionPipeline takes prompts"),
        ("text", {"prompts": []}, "no prompts given"),
        ("text", {"prompts": "missing.txt"}, "cannot read the prompts in missing.txt"),
        ("text", {"prompts": ["cat"], "guidance_scale": -1.0}, "guidance_scale: Input should be greater than or equal to 0"),
        ("text", {"prompts": ["cat"], "calibration_samples": 0}, "calibration_samples: Input should be greater than or equal to 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(make: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    pipeline = {
        "unconditional": lambda: DDPMPipeline(unet=tiny_unet(), scheduler=scheduler()),
        "sizeless": lambda: DDPMPipeline(unet=tiny_unet(sample_size=None), scheduler=scheduler()),
        "classes": dit_pipeline,
        "text": tiny_stable_diffusion,
    }[make]()
    with pytest.raises((UsageError, ArtifactError), match=message):
        quantize(pipeline, tmp_path / "out", **{**FAST, **options})
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with prompts.txt beside it."""
    root = tmp_path_factory.mktemp("text")
    tiny_stable_diffusion().save_pretrained(root / "pipeline")
    (root / "prompts.txt").write_text("a cat\nred dog\n", encoding="utf-8")
    return root


def test_a_text_pipeline_from_the_command_line(stable_diffusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({key: FAST[key] for key in ("max_float_share", "reference_samples")}))
    command = [
        "quantize", str(stable_diffusion / "pipeline"), "-o", str(tmp_path / "out"), "--prompts", str(stable_diffusion / "prompts.txt"),
        "--negative-prompt", "ugly", "--guidance-scale", "5", "--sampler", "pipeline", "--steps", "3", "--calibration-samples", "2",
        "--iterations", "0", "--dilation", "none", "--config", str(config), "--quiet", "--format", "json",
    ]  # fmt: skip
    assert cli.run(command) == 0, capsys.readouterr().err
    checkpoint = load_checkpoint(tmp_path / "out")
    record = checkpoint.artifact.manifest.details["calibration"]
    assert {**record, "prompts": record["prompts"]["count"]} == {
        "from": "pipeline",
        "prompts": 2,
        "scheduler": "PNDMScheduler",
        "samples_per_prompt": 2,
        "guidance_scale": 5.0,
        "negative_prompt": "ugly",
    }
    assert checkpoint.details.inputs == ["sample", "timestep", "encoder_hidden_states"]
    assert checkpoint.timesteps.tolist() == [1, 334, 667]
    assert checkpoint.reference().per_seed == 2
    assert min(checkpoint.details.snr_db["after_distillation"]) > 10
    for in_float in (False, True):
        bundle = export(checkpoint.artifact, tmp_path / f"bundle-{in_float}", target="qdq", float=in_float)
        assert default_batch(bundle.details) == (1, 2, 8)


def test_missing_prompts_are_said_before_weights_are_read(
    stable_diffusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "pipeline" / "model_index.json"
    index.parent.mkdir()
    index.write_text((stable_diffusion / "pipeline" / "model_index.json").read_text())
    assert cli.run(["quantize", str(index.parent), "-o", str(tmp_path / "out"), "--dry-run"]) == 2
    assert "is calibrated on prompts, and none are given" in capsys.readouterr().err


def test_flags_that_need_another(stable_diffusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["quantize", str(stable_diffusion / "pipeline"), "-o", str(tmp_path / "out"), "--lora-scale", "0.5"]) == 2
    assert "--lora-scale is the weight of a LoRA, and none is given" in capsys.readouterr().err
    assert cli.run(["quantize", str(stable_diffusion / "pipeline"), "-o", str(tmp_path / "out")]) == 2
    assert "is calibrated on prompts, and none are given" in capsys.readouterr().err


def test_xl_all_the_way(tmp_path: Path) -> None:
    """Size conditions arrive in a dict, and the unconditional half's text is all zeros."""
    artifact = quantize(tiny_stable_diffusion_xl(), tmp_path / "out", prompts=["a cat", "dog"], **FAST)
    checkpoint = load_checkpoint(artifact.path)
    assert checkpoint.details.inputs == ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"]
    assert not checkpoint.reference().conditions["encoder_hidden_states"][0].any()
    result = check(export(artifact, tmp_path / "qdq", target="qdq", dtype="fp32"), artifact)
    assert result, result.failures


def test_a_lora_is_part_of_the_quantized_model(tmp_path: Path) -> None:
    pipeline = tiny_stable_diffusion()
    pipeline.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=4, target_modules=["to_v", "conv1", "conv2"], init_lora_weights="gaussian"), "style"
    )
    with torch.no_grad():
        for name, parameter in pipeline.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
    artifact = quantize(pipeline, tmp_path / "out", prompts=["a cat"], **FAST)
    checkpoint = load_checkpoint(artifact.path)
    reference = checkpoint.reference()
    sample, t, texts = reference.samples[1], reference.timesteps[1].expand(2), reference.conditions["encoder_hidden_states"]
    with torch.no_grad():
        adapted = pipeline.unet(sample, t, texts).sample
        pipeline.unet.disable_adapters()
        plain = pipeline.unet(sample, t, texts).sample
        got = checkpoint.model(sample, t, texts)
    # The recorded float outputs are the adapted model's, and the quantized model is near them and far from the plain one.
    torch.testing.assert_close(reference.outputs[1], adapted, rtol=1e-3, atol=1e-3)
    assert snr_db(adapted, got) > snr_db(adapted, plain) + 6
    assert not any("lora" in layer for layer in checkpoint.layers)
