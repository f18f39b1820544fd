"""The drop-in in real diffusers pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline
from diffusers.models.unets.unet_2d import UNet2DOutput

from dq_deploy.artifacts import Artifact, Manifest, create_artifact
from dq_deploy.engines.dropin import DropInModel, _through, load
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.sources import load_source


@pytest.fixture(scope="module")
def dropin(tiny_bundle: Artifact) -> DropInModel:
    return load(tiny_bundle.path)


@pytest.fixture(scope="module")
def model(pipeline_dir: Path) -> torch.nn.Module:
    return load_source(pipeline_dir).model


@pytest.mark.parametrize("runtime", ["auto", "onnxruntime", "openvino"])
@pytest.mark.parametrize("timestep", [3, torch.tensor(3), torch.tensor([3]), torch.tensor([3, 700])])
def test_answers_as_the_model_does(tiny_bundle: Artifact, model: torch.nn.Module, runtime: str, timestep: object) -> None:
    sample = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(sample, timestep).sample
    output = load(tiny_bundle, runtime=runtime)(sample, timestep)
    assert isinstance(output, UNet2DOutput)
    torch.testing.assert_close(output.sample, expected, atol=1e-4, rtol=1e-4)


def test_drives_ddim_and_ddpm_pipelines(pipeline_dir: Path, dropin: DropInModel) -> None:
    for pipe in (DDPMPipeline.from_pretrained(pipeline_dir), DDIMPipeline.from_pretrained(pipeline_dir)):
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config) if isinstance(pipe, DDIMPipeline) else pipe.scheduler
        expected = pipe(batch_size=2, generator=torch.Generator().manual_seed(1), num_inference_steps=3, output_type="np").images
        pipe.unet = dropin
        images = pipe(batch_size=2, generator=torch.Generator().manual_seed(1), num_inference_steps=3, output_type="np").images
        torch.testing.assert_close(torch.tensor(images), torch.tensor(expected), atol=1e-3, rtol=0)


def test_moves_with_its_pipeline(tiny_bundle: Artifact, pipeline_dir: Path) -> None:
    pipe = DDPMPipeline.from_pretrained(pipeline_dir)
    pipe.unet = load(tiny_bundle)
    pipe.to(torch.float16)
    assert pipe.unet.dtype == torch.float16
    assert pipe.device == torch.device("cpu")
    sample = torch.randn(1, 1, 8, 8).half()
    assert pipe.unet(sample, 3).sample.dtype == torch.float16
    assert pipe.unet(sample.bfloat16(), 3).sample.dtype == torch.bfloat16


def test_configuration_answers_questions(dropin: DropInModel) -> None:
    assert dropin.config.sample_size == dropin.config["sample_size"] == dropin.sample_size == 8
    assert dropin.in_channels == 1
    assert (dropin.device, dropin.dtype) == (torch.device("cpu"), torch.float32)
    assert sum(parameter.numel() for parameter in dropin.parameters()) == 0
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        dropin.nonsense  # noqa: B018


def test_returns_a_tuple_on_request(dropin: DropInModel) -> None:
    sample = torch.zeros(1, 1, 8, 8)
    (output,) = dropin(sample, 0, return_dict=False)
    torch.testing.assert_close(output, dropin(sample=sample, timestep=0).sample)


def test_conditions_left_out_are_accepted_and_others_named(dropin: DropInModel) -> None:
    sample = torch.zeros(1, 1, 8, 8)
    dropin(sample, 0, encoder_hidden_states=None, added_cond_kwargs={})
    with pytest.raises(UsageError, match="exported without encoder_hidden_states, text_embeds; it takes sample, timestep"):
        dropin(sample, 0, encoder_hidden_states=torch.zeros(1), added_cond_kwargs={"text_embeds": torch.zeros(1)})
    with pytest.raises(UsageError, match="3 inputs were given, and this model takes sample, timestep"):
        dropin(sample, 0, sample)
    with pytest.raises(UsageError, match="input 'sample' is missing"):
        dropin(timestep=0)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("inputs", "named", "message"),
    [
        ((torch.zeros(1, 8, 8), 3), {}, r"input 'sample' has shape \[1, 8, 8\], and the graph takes \[any, 1, 8, 8\]"),
        ((torch.zeros(8, 8), 3), {}, r"input 'sample' has shape \[8, 8\]"),
        ((torch.tensor(1.0), 3), {}, r"input 'sample' has shape \[1\], and the graph takes"),
        ((torch.zeros(1, 2, 8, 8), 3), {}, r"input 'sample' has shape \[1, 2, 8, 8\]"),
        ((torch.zeros(1, 1, 8, 8, dtype=torch.int64), 3), {}, "input 'sample' is torch.int64, and the output would be cut to that type"),
        ((torch.zeros(1, 1, 8, 8, dtype=torch.bool), 3), {}, "input 'sample' is torch.bool"),
        ((torch.zeros(1, 1, 8, 8, dtype=torch.complex64), 3), {}, "input 'sample' is torch.complex64"),
        ((torch.zeros(2, 1, 8, 8), torch.tensor([1, 2, 3])), {}, r"input 'timestep' has shape \[3\]"),
        ((torch.zeros(1, 1, 8, 8), 250), {"timestep": 0}, "input 'timestep' is given twice\ninputs in their order: sample, timestep"),
        ((torch.zeros(1, 1, 8, 8),), {"sample": torch.zeros(1, 1, 8, 8), "timestep": 0}, "input 'sample' is given twice"),
        ((torch.zeros(1, 1, 8, 8), 3), {"a": {"timestep": 1}}, "input 'timestep' is given twice"),
        ((torch.full((1, 1, 8, 8), torch.nan), 3), {}, r"input 'sample' has 64 values that are not finite in float32"),
    ],
)
def test_what_the_float_model_refuses_is_refused(tiny_bundle: Artifact, model: torch.nn.Module, runtime: Any, inputs: tuple[Any, ...],
                                                 named: dict[str, Any], message: str) -> None:  # fmt: skip
    refused = False
    try:
        refused = not model(*inputs, **named).sample.isfinite().all()
    except (IndexError, RuntimeError, TypeError, ValueError):
        refused = True
    assert refused
    with pytest.raises(UsageError, match=message):
        load(tiny_bundle, runtime=runtime)(*inputs, **named)


def test_nan_propagates_by_option(tiny_bundle: Artifact) -> None:
    sample = torch.zeros(2, 1, 8, 8)
    sample[0, 0, 0, 0] = torch.nan
    output = load(tiny_bundle, nonfinite="propagate")(sample, 3).sample
    assert output[0].isnan().all()
    assert output[1].isfinite().all()


def test_only_numbers_and_positions_may_come_without_a_batch() -> None:
    """As in diffusers: text without a batch is refused there, and a class or a guidance scale is not."""
    seen = {}

    class Kept:
        name, details = "kept", {}

        def run(self, inputs: dict[str, Any]) -> Any:
            seen.update({name: value.shape for name, value in inputs.items()})
            return inputs["hidden_states"]

    ranks = {"hidden_states": 3, "timestep": 1, "guidance": 1, "class_labels": 1, "img_ids": 3, "encoder_hidden_states": 3}
    _through(Kept(), ranks)({
        "hidden_states": torch.zeros(2, 4, 8), "timestep": torch.tensor(1.0), "guidance": torch.tensor(3.5),
        "class_labels": torch.tensor([3]), "img_ids": torch.zeros(4, 3), "encoder_hidden_states": torch.zeros(5, 8),
    })  # fmt: skip
    assert seen == {
        "hidden_states": (2, 4, 8), "timestep": (), "guidance": (2,), "class_labels": (2,), "img_ids": (2, 4, 3),
        "encoder_hidden_states": (5, 8),
    }  # fmt: skip


@pytest.mark.parametrize("arguments", [((), {}), (("cond",), {}), (("cond",), {"step_index": 3, "sigma": 0.5, "what comes next": None})])
def test_a_pipeline_may_say_anything_of_where_it_is(dropin: DropInModel, arguments: Any) -> None:
    with dropin.cache_context(*arguments[0], **arguments[1]) as context:
        assert context is None


def test_what_cannot_be_loaded_is_refused(tmp_path: Path, tiny_bundle: Artifact) -> None:
    with pytest.raises(UsageError, match="unknown runtime 'abacus'\nchoose one of: onnxruntime, openvino"):
        load(tiny_bundle, runtime="abacus")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no such path"):
        load(tmp_path / "absent")
    with create_artifact(tmp_path / "checkpoint", Manifest(kind="checkpoint", model="m")):
        pass
    with pytest.raises(ArtifactError, match="is a checkpoint, and a bundle, an engine or a schedule is needed here"):
        load(tmp_path / "checkpoint")
    with create_artifact(tmp_path / "engine", Manifest(kind="engine", model="m", details={"backend": "tensorrt-rtx"})):
        pass
    with pytest.raises(ArtifactError, match="is not a valid engine of this dq-deploy: sample_shape: Field required"):
        load(tmp_path / "engine")
