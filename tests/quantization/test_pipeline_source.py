"""Trajectories taken from real diffusers pipelines that run themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
)

from dq_deploy.errors import ArtifactError, ResourceError, UsageError
from dq_deploy.progress import silent
from dq_deploy.quantization.calibration.pipeline_source import PipelineSource, read_prompts
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.sources import load_source, text_pipeline
from tests.tiny_pipelines import tiny_conditioned_unet, tiny_stable_diffusion, tiny_stable_diffusion_xl

PROMPTS = ["a cat", "dog", "red horse"]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return tiny_stable_diffusion()


def prepare(pipeline: Any, *, prompts: list[str] = PROMPTS, negative_prompt: str | None = None, **options: Any) -> PipelineSource:
    config = QuantizeConfig.build(**{"steps": 4, "batch_size": 4, **options})
    return PipelineSource.prepare(pipeline, "unet", prompts, negative_prompt, config)


def collect(pipeline: Any, seeds: range = range(5), **options: Any) -> Trajectories:
    return prepare(pipeline, **options).collect(_no_model, seeds, silent)


def _no_model(*_: Any, **__: Any) -> torch.Tensor:
    raise AssertionError("the pipeline runs its own denoiser")


@torch.no_grad()
def assert_consistent(data: Trajectories, unet: Any) -> None:
    """Every output belongs to its input, and timesteps ascend."""
    assert bool((data.timesteps.diff() > 0).all())
    for row, t in enumerate(data.timesteps):
        expected = unet(data.samples[row], t, **data.conditions).sample
        torch.testing.assert_close(data.outputs[row], expected, rtol=1e-4, atol=1e-4)


def test_both_halves_of_every_prompt_as_the_pipeline_makes_them(pipeline: StableDiffusionPipeline) -> None:
    data = collect(pipeline)
    assert data.per_seed == 2
    assert data.samples.shape == (4, 10, 4, 8, 8)
    assert data.conditions["encoder_hidden_states"].shape == (10, 8, 16)
    assert torch.equal(data.samples[:, 0::2], data.samples[:, 1::2])
    texts = data.conditions["encoder_hidden_states"]
    negative, _ = pipeline.encode_prompt("", torch.device("cpu"), 1, False)
    for seed in range(5):
        expected, _ = pipeline.encode_prompt(PROMPTS[seed % 3], torch.device("cpu"), 1, False)
        torch.testing.assert_close(texts[2 * seed], negative[0])  # diffusers puts the unconditional half first
        torch.testing.assert_close(texts[2 * seed + 1], expected[0])
    assert_consistent(data, pipeline.unet)


def test_the_trajectory_is_the_users_own(pipeline: StableDiffusionPipeline) -> None:
    """What a hook sees when the user samples with DDIM is what was recorded (diffusers switches clipping off for latents)."""
    own = tiny_stable_diffusion(DDIMScheduler.from_config(pipeline.scheduler.config))
    seen: list[torch.Tensor] = []
    handle = own.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    own("dog", num_inference_steps=4, guidance_scale=3.0, generator=torch.Generator().manual_seed(1), output_type="latent")
    handle.remove()
    data = collect(pipeline, range(3), guidance_scale=3.0)
    for row, expected in enumerate(reversed(seen)):
        torch.testing.assert_close(data.samples[row, 2:4], expected, rtol=1e-3, atol=1e-3)


def test_neither_batch_nor_company_matters(pipeline: StableDiffusionPipeline) -> None:
    large, small = collect(pipeline, batch_size=64), collect(pipeline, range(2), batch_size=1)
    torch.testing.assert_close(large.samples[:, :4], small.samples, rtol=1e-3, atol=1e-3)


def test_the_users_pipeline_stays_as_it_is() -> None:
    pipeline = tiny_stable_diffusion()
    before = {**pipeline.unet.state_dict()}, pipeline.scheduler, pipeline.unet, pipeline.scheduler.num_inference_steps
    pipeline.set_progress_bar_config(disable=False)
    loaded = load_source(pipeline)
    copied = text_pipeline(loaded)
    prepare(copied).collect(_no_model, range(2), silent)
    assert copied.unet is loaded.model
    assert pipeline.unet is before[2]
    assert pipeline.scheduler is before[1]
    assert pipeline.config["scheduler"] == ("diffusers", "PNDMScheduler")
    assert pipeline.scheduler.num_inference_steps is before[3] is None
    assert pipeline._progress_bar_config == {"disable": False}
    assert all(not m._forward_hooks and not m._forward_pre_hooks for p in (pipeline, copied) for m in p.unet.modules())
    assert all(torch.equal(value, before[0][name]) for name, value in pipeline.unet.state_dict().items())


def test_guidance_off_and_a_negative_prompt(pipeline: StableDiffusionPipeline) -> None:
    plain = collect(pipeline, range(2), guidance_scale=1.0)
    assert plain.per_seed == 1
    assert plain.samples.shape[1] == 2
    with_negative, without = collect(pipeline, range(2), negative_prompt="ugly"), collect(pipeline, range(2))
    halves = with_negative.conditions["encoder_hidden_states"], without.conditions["encoder_hidden_states"]
    assert torch.equal(halves[0][1::2], halves[1][1::2])
    assert not torch.equal(halves[0][0::2], halves[1][0::2])


@pytest.mark.parametrize(
    "scheduler",
    [
        None,  # PNDM: visits its second timestep twice
        HeunDiscreteScheduler(),  # visits all but the first twice
        EulerDiscreteScheduler(),  # scales the model's input
        EulerAncestralDiscreteScheduler(),  # draws noise at every step
        DPMSolverMultistepScheduler(),
        DDPMScheduler(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_pipelines_own_scheduler(scheduler: Any) -> None:
    pipeline = tiny_stable_diffusion(scheduler)
    data = collect(pipeline, range(3), sampler="pipeline")
    assert len(data.timesteps) == 4
    assert_consistent(data, pipeline.unet)
    again = collect(pipeline, range(1), sampler="pipeline")
    torch.testing.assert_close(again.samples, data.samples[:, :2], rtol=1e-3, atol=1e-3)


def test_xl_has_nested_conditions() -> None:
    pipeline = tiny_stable_diffusion_xl()
    source = prepare(pipeline, negative_prompt="ugly")
    assert {name: tuple(v.shape) for name, v in source.examples.items()} == {
        "encoder_hidden_states": (2, 8, 32),
        "text_embeds": (2, 16),
        "time_ids": (2, 6),
    }
    data = source.collect(_no_model, range(3), silent)
    nested = {name: data.conditions[name] for name in ("text_embeds", "time_ids")}
    with torch.no_grad():
        texts = data.conditions["encoder_hidden_states"]
        expected = pipeline.unet(data.samples[1], data.timesteps[1], encoder_hidden_states=texts, added_cond_kwargs=nested).sample
    torch.testing.assert_close(data.outputs[1], expected, rtol=1e-4, atol=1e-4)


def test_a_pipeline_in_half_precision_is_calibrated_in_float32() -> None:
    pipeline = tiny_stable_diffusion().to(torch.bfloat16)
    loaded = load_source(pipeline)
    data = collect(text_pipeline(loaded), range(2))
    assert {t.dtype for t in (data.samples, data.outputs, *data.conditions.values())} == {torch.float32}
    assert_consistent(data, loaded.model)
    assert pipeline.unet.dtype == torch.bfloat16


class Sequential(DiffusionPipeline):
    """Guides by two calls at each step; ``switch`` changes the prompt half-way, ``mixed`` mixes timesteps, ``loose`` gives an object."""

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.trouble = ""

    @torch.no_grad()
    def __call__(self, prompt: list[str], num_inference_steps: int, generator: Any, output_type: str) -> torch.Tensor:
        assert output_type == "latent"
        if self.trouble == "refuse":
            raise ValueError("these prompts\n are too long")
        if self.trouble == "idle":
            return torch.zeros(1)
        x = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generator])
        texts = torch.stack([torch.full((8, 16), float(len(p))) for p in prompt])
        self.scheduler.set_timesteps(num_inference_steps)
        for i, t in enumerate(self.scheduler.timesteps):
            if self.trouble == "switch" and i == 2:
                texts = texts + 1
            inputs = torch.cat([x, x[:1]]) if self.trouble == "uneven" and len(x) > 1 else x
            moment = torch.arange(len(x)) if self.trouble == "mixed" else t
            options = {"cross_attention_kwargs": {"extra": object()}} if self.trouble == "loose" else {}
            options = {"cross_attention_kwargs": {"scale": 0.5}} if self.trouble == "uneven options" else options
            states = torch.cat([texts, texts[:1]]) if len(inputs) > len(texts) else texts
            conditional = self.unet(inputs, moment, states, **options, return_dict=False)[0][: len(x)]
            null = self.unet(x, t, encoder_hidden_states=torch.zeros_like(texts)).sample
            x = self.scheduler.step(null + 2 * (conditional - null), t, x).prev_sample
        return x


def sequential(trouble: str = "") -> Sequential:
    pipeline = Sequential(tiny_conditioned_unet(), DDIMScheduler())
    pipeline.trouble = trouble
    return pipeline


def test_halves_in_separate_calls() -> None:
    pipeline = sequential()
    data = collect(pipeline, range(3))
    assert data.per_seed == 2
    assert data.conditions["encoder_hidden_states"][:, 0, 0].tolist() == [5, 0, 3, 0, 9, 0]
    assert_consistent(data, pipeline.unet)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (
            "switch",
            "the pipeline changes encoder_hidden_states while it samples, and conditions must stay as they are\nswitch off guidance",
        ),
        ("mixed", r"the pipeline mixes the timesteps \[0.0, 1.0\] in one batch"),
        (
            "loose",
            "UNet2DConditionModel is called with cross_attention_kwargs.extra = <object .*>, which is neither tensors nor numbers and text",
        ),
        (
            "uneven options",
            "its UNet2DConditionModel in different ways: this model is called with cross_attention_kwargs, which is missing\nswitch off",
        ),
        ("uneven", "the pipeline calls its model with 3 samples for 2 prompts"),
        ("refuse", "the Sequential refuses to sample 1 prompts in 4 steps: these prompts are too long\ntry it in diffusers first"),
        ("idle", "a Sequential ran without calling its unet"),
    ],
)
def test_pipelines_that_cannot_be_recorded(trouble: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        collect(sequential(trouble), range(2))


def test_what_a_pipeline_does_not_take() -> None:
    with pytest.raises(UsageError, match="a Sequential takes no guidance scale"):
        prepare(sequential(), guidance_scale=3.0)
    with pytest.raises(UsageError, match="a Sequential takes no negative prompt"):
        prepare(sequential(), negative_prompt="ugly")


def test_nan_names_the_timestep_and_the_seed() -> None:
    pipeline = tiny_stable_diffusion()
    inner = pipeline.unet.conv_out

    class Broken(torch.nn.Module):
        """NaN for the second of two prompts, from the third step on."""

        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            y: torch.Tensor = inner(x)
            if self.calls > 2:
                y[3] = torch.nan  # [null 0, null 1, conditional 0, conditional 1]
            return y

    pipeline.unet.conv_out = Broken()
    with pytest.raises(ArtifactError, match="NaN or Inf at timestep 251, seed 8"):
        collect(pipeline, range(7, 9))
    assert not pipeline.unet._forward_hooks


def test_other_prompts_of_another_kind() -> None:
    pipeline = sequential()
    whole = pipeline.__class__.__call__

    def longer(self: Any, prompt: list[str], **options: Any) -> Any:
        options["num_inference_steps"] += len(prompt) == 1  # another schedule for the last batch
        return whole(self, prompt=prompt, **options)

    class Uneven(Sequential):
        def __call__(self, prompt: list[str], num_inference_steps: int, generator: Any, output_type: str) -> Any:
            return longer(self, prompt, num_inference_steps=num_inference_steps, generator=generator, output_type=output_type)

    with pytest.raises(UsageError, match="calls its model in another way for other prompts"):
        collect(Uneven(pipeline.unet, DDIMScheduler()), range(3), batch_size=2)


def test_prompts_from_a_file_and_a_list(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\r\n\n  ein Käfer \n".encode())
    assert read_prompts(path) == read_prompts(str(path)) == ["a cat", "ein Käfer"]
    path.write_bytes("\ufeffa cat\u2028on a mat\r\n\r\nin\x0bdoors\r".encode())
    assert read_prompts(path) == ["a cat\u2028on a mat", "in\x0bdoors"]  # what word processors put within a line ends none
    assert read_prompts(["", "x"]) == ["", "x"]  # an empty prompt in a list is meant


def test_bad_prompts(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("Käfer".encode("latin-1"))
    with pytest.raises(UsageError, match="no prompts in .*empty.txt\ngive one prompt at least"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(UsageError, match="latin.txt is not UTF-8 text: .* at byte 1"):
        read_prompts(tmp_path / "latin.txt")
    with pytest.raises(
        UsageError, match=r"cannot read the prompts in .*emty.txt: No such file.*\ndid you mean empty.txt.*\? it was looked for in"
    ):
        read_prompts(tmp_path / "emty.txt")
    with pytest.raises(UsageError, match=r"none.txt: No such file.*\nits folder .*nowhere cannot be read: No such file"):
        read_prompts(tmp_path / "nowhere/none.txt")
    with pytest.raises(UsageError, match="cannot read the prompts in .*: Is a directory"):
        read_prompts(tmp_path)
    with pytest.raises(UsageError, match="no prompts given"):
        read_prompts([])
    with pytest.raises(UsageError, match="a prompt is text, not 3"):
        read_prompts(["a", 3])  # type: ignore[list-item]


def consistency_pipeline() -> LatentConsistencyModelPipeline:
    own = tiny_stable_diffusion(time_cond_proj_dim=8)
    parts = {name: getattr(own, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor")}
    pipeline = LatentConsistencyModelPipeline(**parts, scheduler=LCMScheduler(), requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_pipeline_that_ddim_cannot_serve_keeps_its_scheduler() -> None:
    pipeline = consistency_pipeline()
    source = prepare(pipeline, guidance_scale=3.0)
    assert source.choice.record()["class"] == source.record()["scheduler"] == "LCMScheduler"
    assert source.choice.why.startswith("the pipeline refuses DDIM: the LatentConsistencyModelPipeline refuses to sample 1 prompts")
    assert "original_inference_steps" in source.choice.why
    source.try_out(_no_model)
    seen: list[torch.Tensor] = []
    handle = pipeline.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pipeline("dog", num_inference_steps=4, guidance_scale=3.0, generator=torch.Generator().manual_seed(1), output_type="latent")
    handle.remove()
    data = source.collect(_no_model, range(3), silent)
    assert data.timesteps.tolist() == [259.0, 499.0, 759.0, 999.0]
    for row, expected in enumerate(reversed(seen)):
        torch.testing.assert_close(data.samples[row, 1:2], expected, rtol=1e-3, atol=1e-3)
    assert set(data.conditions) == {"encoder_hidden_states", "timestep_cond"}


def test_a_flow_solver_stays_in_its_pipeline() -> None:
    """Sana's and Wan's kind: DPM-Solver over flow matching, whose class DDIM could replace where it predicts noise."""
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = tiny_stable_diffusion(scheduler)
    source = prepare(pipeline)
    assert source.choice.record() == {
        "class": "DPMSolverMultistepScheduler",
        "why": "its prediction type is 'flow_prediction', and DDIM knows epsilon, sample, v_prediction",
    }
    data = source.collect(_no_model, range(2), silent)
    scheduler.set_timesteps(4)
    assert data.timesteps.tolist() == sorted(scheduler.timesteps.tolist())
    assert_consistent(data, pipeline.unet)


class Stuck(DDIMScheduler):
    """Fails after the first call of the network."""

    def step(self, *_: Any, **__: Any) -> Any:
        raise KeyError("sigma")


def test_the_pipelines_first_step_is_tried() -> None:
    source = prepare(tiny_stable_diffusion(Stuck()), sampler="pipeline")
    with pytest.raises(UsageError, match="the StableDiffusionPipeline refuses to sample 1 prompts in 4 steps: KeyError: 'sigma'"):
        source.try_out(_no_model)


@pytest.mark.parametrize(
    ("error", "expected", "told"),
    [
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), UsageError, "refuses to sample .* RuntimeError: mat1 and mat2 shapes"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."),
            ResourceError,
            "4 KiB were requested",
        ),
    ],
    ids=["a shape", "memory"],
)
def test_what_a_pipeline_ends_in_is_told(error: Exception, expected: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(Stuck, "step", step)
    source = prepare(tiny_stable_diffusion(Stuck()), sampler="pipeline")
    with pytest.raises(expected, match=told):
        source.try_out(_no_model)
