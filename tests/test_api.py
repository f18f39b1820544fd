"""The Python API: names and meaning of what callers rely on."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from torch import nn

import dq_deploy
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.errors import ArtifactError, UsageError
from tests.flow import OPTIONS, Flow, small_unet


class Plain(nn.Module):
    """Any module called as ``module(sample, timestep)``; the path to its output is one convolution after another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into = nn.Conv2d(1, 8, 3, padding=1)
        self.time = nn.Linear(1, 8)
        self.body = nn.Sequential(nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.SiLU())
        self.out = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        h = self.into(sample) + self.time(timestep[:, None] / 1000)[:, :, None, None]
        result: torch.Tensor = self.out(h + self.body(h))
        return result


@pytest.mark.parametrize(
    ("name", "required", "optional"),
    [
        ("quantize", ["source", "output"], ["preset", "scheduler", "sample_shape", "conditions", "blocks"]),
        ("export", ["checkpoint", "output", "target"], ["dtype", "float"]),
        ("build_engine", ["bundle", "output"], ["backend", "compute_capabilities", "batch"]),
        ("check", ["artifact", "checkpoint"], []),
        ("combine", ["members", "output", "switches"], ["force"]),
        ("lint", ["source"], ["target"]),
        ("load", ["path"], ["runtime"]),
    ],
)
def test_signatures(name: str, required: list[str], optional: list[str]) -> None:
    parameters = inspect.signature(getattr(dq_deploy, name)).parameters
    open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    assert [p.name for p in parameters.values() if p.default is p.empty and p.kind not in open_ended] == required
    assert set(optional) <= set(parameters)
    assert name in dq_deploy.__all__


def test_everything_named_exists_and_nothing_else() -> None:
    for name in dq_deploy.__all__:
        assert callable(getattr(dq_deploy, name))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = dq_deploy.quantise


def test_a_plain_module_all_the_way(tmp_path: Path) -> None:
    module = Plain()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    options: dict[str, Any] = {**OPTIONS, "steps": 4, "reference_samples": 8}
    checkpoint = dq_deploy.quantize(
        module,
        str(tmp_path / "ckpt") + "/",
        scheduler=DDPMScheduler(num_train_timesteps=1000),
        sample_shape=(1, 32, 32),
        conditions=None,
        blocks=None,
        **options,
    )
    assert isinstance(checkpoint, Artifact)
    assert checkpoint.path.is_dir()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    bundle = dq_deploy.export(checkpoint, tmp_path / "bundle", target="qdq", dtype="fp32")
    verdict = dq_deploy.check(bundle, checkpoint)
    assert isinstance(verdict, dq_deploy.CheckResult)
    assert verdict, verdict.failures
    sample, timestep = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(3)), torch.tensor([750.0, 0.0])
    with torch.no_grad():
        expected = module(sample, timestep)
        got = dq_deploy.load(bundle)(sample, timestep, return_dict=False)[0]
    assert got.shape == expected.shape
    assert (got - expected).norm() < 0.1 * expected.norm()


def test_paths_artefacts_and_strings_are_all_taken(flow: Flow, tmp_path: Path) -> None:
    bundle = flow.bundle("qdq")
    for given in (bundle, bundle.path, str(bundle.path)):
        assert dq_deploy.check(given, str(flow.checkpoint), optimized=False)
        assert dq_deploy.load(given).config["sample_size"] == 8


def test_the_lint(flow: Flow) -> None:
    result = dq_deploy.lint(flow.bundle("qdq"))
    assert isinstance(result, dq_deploy.LintResult)
    assert result
    found = dq_deploy.lint(str(flow.bundles["onnxruntime"]), target="qdq")
    assert not found
    assert {f.rule for f in found.errors} >= {"code-type", "zero-point"}


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_an_engine(flow: Flow, tmp_path: Path) -> None:
    engine = dq_deploy.build_engine(
        flow.bundle("qdq"), str(tmp_path / "engine") + "/", backend="tensorrt-rtx", compute_capabilities=["8.9"]
    )
    assert [entry["compute_capability"] for entry in engine.manifest.details["engines"]] == ["8.9"]
    assert engine.manifest.parent == flow.bundle("qdq").as_parent


@pytest.mark.parametrize("name", ["qdq", "qdq-fp16", "onnxruntime"])
@pytest.mark.parametrize("pipeline_class", [DDPMPipeline, DDIMPipeline])
def test_the_bundle_in_a_real_pipeline(flow: Flow, name: str, pipeline_class: type[DDPMPipeline] | type[DDIMPipeline]) -> None:
    pipe = pipeline_class.from_pretrained(flow.pipeline)
    if pipeline_class is DDIMPipeline:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        images = pipe(batch_size=2, generator=torch.Generator().manual_seed(1), num_inference_steps=5, output_type="np").images
        return torch.from_numpy(images)

    expected = draw()
    pipe.unet = dq_deploy.load(flow.bundles[name])
    got = draw()
    assert got.shape == expected.shape == (2, 8, 8, 1)
    assert not torch.equal(got, expected)
    assert (got - expected).abs().mean() < 0.05


def test_a_pipeline_object_is_a_source_and_stays_as_it_was(flow: Flow, tmp_path: Path) -> None:
    pipe = DDPMPipeline(unet=small_unet(), scheduler=DDPMScheduler(num_train_timesteps=1000))
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    checkpoint = dq_deploy.quantize(pipe, tmp_path / "ckpt", **OPTIONS)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    # The same model and options as from the folder: the same integers.
    assert checkpoint.manifest.files == open_artifact(flow.checkpoint, "checkpoint").manifest.files


def test_what_a_plain_module_needs(tmp_path: Path) -> None:
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    with pytest.raises(UsageError, match="scheduler= and sample_shape="):
        dq_deploy.quantize(Plain(), tmp_path / "o")
    with pytest.raises(UsageError, match="scheduler= and sample_shape="):
        dq_deploy.quantize(Plain(), tmp_path / "o", scheduler=scheduler)
    broken = Plain()
    with torch.no_grad():
        broken.out.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ArtifactError, match="out.weight"):
        dq_deploy.quantize(broken, tmp_path / "o", scheduler=scheduler, sample_shape=(1, 8, 8))
    assert list(tmp_path.iterdir()) == []


def test_settings_are_judged_before_anything_is_loaded(flow: Flow, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="w3a3"):
        dq_deploy.quantize("no/such/path/at/all", tmp_path / "o", preset="w3a3")
    with pytest.raises(UsageError, match="stepz"):
        dq_deploy.quantize(flow.pipeline, tmp_path / "o", stepz=3)
    with pytest.raises(UsageError, match="coreml"):
        dq_deploy.export(flow.checkpoint, tmp_path / "o", target="coreml")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="fp8"):
        dq_deploy.export(flow.checkpoint, tmp_path / "o", target="qdq", dtype="fp8")
    assert list(tmp_path.iterdir()) == []
