"""The drop-in as a module, in real pipelines: moved, copied, pickled; and refused, in words, where it has no weights or layers."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDPMPipeline
from safetensors.torch import save_file

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.dropin import DropInModel, load
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.quantization import quantize
from tests.flow import altered_manifest
from tests.tiny_pipelines import tiny_flux, tiny_stable_diffusion, tiny_stable_diffusion_3, tiny_stable_diffusion_xl

SAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dropin(tiny_bundle: Artifact) -> DropInModel:
    return load(tiny_bundle.path, threads=1)


@pytest.fixture
def pipe(pipeline_dir: Path, dropin: DropInModel) -> DDPMPipeline:
    pipe = DDPMPipeline.from_pretrained(pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet = dropin
    return pipe


def drawn(pipe: Any) -> np.ndarray:
    images: np.ndarray = pipe(generator=torch.Generator().manual_seed(1), num_inference_steps=2, output_type="np").images
    return images


def output(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(SAMPLE, 3).sample
    return result


def stand_in(pipe: Any, component: str) -> DropInModel:
    """A drop-in with the configuration of a pipeline's model; what it computes is of no interest."""
    config = {**getattr(pipe, component).config, "_class_name": type(getattr(pipe, component)).__name__}
    return DropInModel(lambda inputs: inputs["sample"], ["sample", "timestep"], config)


def offloaded_by_model(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offloaded_by_group(pipe: Any) -> None:
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


def compiled(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compiled_in_place(pipe: Any) -> None:
    pipe.unet.compile(backend="eager")


def moved(pipe: Any) -> None:
    pipe.to("cpu")


def sliced(pipe: Any) -> None:
    pipe.enable_attention_slicing()


@pytest.mark.parametrize("change", [offloaded_by_model, offloaded_by_group, compiled, compiled_in_place, moved, sliced])
def test_draws_the_same_after(pipe: DDPMPipeline, change: Callable[[Any], None]) -> None:
    before = drawn(pipe)
    change(pipe)
    np.testing.assert_array_equal(drawn(pipe), before)
    np.testing.assert_array_equal(drawn(pipe), before)


def test_stands_in_for_weights_that_are_never_read(pipeline_dir: Path, tmp_path: Path, dropin: DropInModel, pipe: DDPMPipeline) -> None:
    """``from_pretrained(…, unet=…)`` takes nothing but models of diffusers."""
    shutil.copytree(pipeline_dir, tmp_path / "p")
    for weights in (tmp_path / "p" / "unet").glob("*.safetensors"):
        weights.unlink()
    loaded = DDPMPipeline.from_pretrained(tmp_path / "p", unet=dropin)
    assert loaded.unet is dropin
    np.testing.assert_array_equal(drawn(loaded), drawn(pipe))


def test_computes_the_same_when_offloaded_in_sequence(dropin: DropInModel) -> None:
    """As ``enable_sequential_cpu_offload`` does with each part: between calls the parameters are on no device."""
    expected = output(dropin)
    cpu_offload(dropin, torch.device("cpu"), offload_buffers=True)
    assert dropin.device.type == "meta"
    torch.testing.assert_close(output(dropin), expected, rtol=0, atol=0)
    torch.testing.assert_close(output(pickle.loads(pickle.dumps(dropin))), expected, rtol=0, atol=0)


def test_one_graph_is_asked_for_where_there_is_none(dropin: DropInModel) -> None:
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="an engine computes this, and there is nothing to compile"):
        output(torch.compile(dropin, backend="eager", fullgraph=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_type_is_what_the_pipeline_makes_its_tensors_of(dropin: DropInModel, dtype: torch.dtype) -> None:
    expected = output(dropin)
    assert dropin.to(dtype).dtype == dtype
    got = dropin(SAMPLE.to(dtype), 3).sample
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=2e-2, rtol=2e-2)
    assert dropin.half().dtype == torch.float16


def test_a_copy_runs_on_the_same_engine_and_moves_on_its_own(pipe: DDPMPipeline) -> None:
    expected = output(pipe.unet)
    offloaded_by_model(pipe)  # accelerate's hook is the original's
    for twin in (copy.deepcopy(pipe.unet), copy.copy(pipe.unet)):
        twin.half()
        assert (twin.dtype, pipe.unet.dtype) == (torch.float16, torch.float32)
        assert not hasattr(twin, "_hf_hook")
        assert "forward" not in vars(twin)
        torch.testing.assert_close(output(twin), expected, rtol=0, atol=0)
    assert type(copy.deepcopy(pipe).unet) is DropInModel


def test_is_pickled_as_what_it_was_loaded_from(tiny_bundle: Artifact) -> None:
    model = load(tiny_bundle.path, runtime="onnxruntime", threads=1, nonfinite="propagate").half()
    content = pickle.dumps(model)
    assert len(content) < 2000
    again = pickle.loads(content)
    assert again.dtype == torch.float16
    torch.testing.assert_close(output(again), output(model), rtol=0, atol=0)
    assert output_of(again, torch.full_like(SAMPLE, torch.nan)).isnan().all()


def output_of(model: Any, sample: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = model(sample, 3).sample
    return result


def test_goes_to_a_process_that_is_spawned(dropin: DropInModel) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(output_of, (dropin, SAMPLE))
    torch.testing.assert_close(got, output(dropin), rtol=0, atol=1e-6)


def test_a_pickle_of_what_is_no_longer_there(tmp_path: Path, tiny_bundle: Artifact) -> None:
    bundle = altered_manifest(tiny_bundle, tmp_path / "bundle")
    content = pickle.dumps(load(bundle))
    (tmp_path / "bundle").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no such path: .*bundle"):
        pickle.loads(content)
    altered_manifest(tiny_bundle, tmp_path / "bundle", model="another")
    with pytest.raises(ArtifactError, match=r"bundle is another artefact than the one that was pickled\nload it with"):
        pickle.loads(content)
    with pytest.raises(UsageError, match=r"this drop-in was not loaded from a path, and cannot be pickled\nload it with"):
        pickle.dumps(DropInModel(lambda inputs: inputs["sample"], ["sample"], {}))


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: torch.compile(model, backend="eager")])
def test_a_pipeline_with_it_is_not_saved(tmp_path: Path, pipeline_dir: Path, tiny_bundle: Artifact, wrap: Any) -> None:
    """Nothing is written: neither other parts, nor an index without the model over one that has it."""
    pipe = DDPMPipeline.from_pretrained(pipeline_dir)
    pipe.unet = wrap(load(tiny_bundle))
    index = (pipeline_dir / "model_index.json").read_bytes()
    for folder in (tmp_path / "new", pipeline_dir):
        with pytest.raises(
            UsageError, match=r"the pipeline's unet is a drop-in that runs .*: nothing was written\nput the float model back"
        ):
            pipe.save_pretrained(folder)
    assert not (tmp_path / "new").exists()
    assert (pipeline_dir / "model_index.json").read_bytes() == index
    pipe.unet = DDPMPipeline.from_pretrained(pipeline_dir).unet
    pipe.save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / "unet" / "config.json").is_file()


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (tiny_stable_diffusion, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"),
        (tiny_stable_diffusion_xl, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"),
        (tiny_stable_diffusion_3, "transformer.transformer_blocks.0.attn.to_q"),
        (tiny_flux, "transformer.transformer_blocks.0.attn.to_q"),
    ],
)
def test_an_adapter_is_for_the_float_model(tmp_path: Path, make: Callable[[], Any], layer: str) -> None:
    pipe = make()
    component, _, name = layer.partition(".")
    outputs, inputs = getattr(pipe, component).get_submodule(name).weight.shape
    save_file(
        {f"{layer}.lora_A.weight": torch.zeros(2, inputs), f"{layer}.lora_B.weight": torch.zeros(outputs, 2)}, tmp_path / "lora.safetensors"
    )
    setattr(pipe, component, stand_in(pipe, component))
    with pytest.raises(UsageError, match=r"no attribute 'load_lora_adapter'(?s:.*)quantize SOURCE --lora FILE"):
        pipe.load_lora_weights(tmp_path / "lora.safetensors")


def test_what_changes_layers_is_refused_in_one_sentence() -> None:
    pipe = tiny_stable_diffusion()
    pipe.unet = unet = stand_in(pipe, "unet")
    calls: dict[str, Callable[[], Any]] = {
        "fuse_qkv_projections": pipe.fuse_qkv_projections,
        "enable_freeu": lambda: pipe.enable_freeu(1, 1, 1, 1),
        "attn_processors": lambda: unet.attn_processors,
        "set_attn_processor": lambda: unet.set_attn_processor(None),
        "enable_gradient_checkpointing": lambda: unet.enable_gradient_checkpointing,
        "down_blocks": lambda: unet.down_blocks[0],
        "fuse_lora": pipe.fuse_lora,
        "enable_layerwise_casting": lambda: unet.enable_layerwise_casting,
        "encoder_hid_proj": lambda: unet.encoder_hid_proj.image_projection_layers,
    }
    for name, call in calls.items():
        expected = (
            f"a drop-in has no attribute '{name}': it runs an engine, and answers a UNet2DConditionModel's forward pass and configuration, "
            "while the layers and the code around them are inside the engine\n"
            + {"fuse_lora": "quantize the model with its adapter", "encoder_hid_proj": "an IP-Adapter is quantized with the model"}.get(
                name, "do this to the float model before it is quantized, or put the"
            )
        )
        with pytest.raises(UsageError) as raised:
            call()
        assert str(raised.value).startswith(expected)
        assert not hasattr(unet, name)
    with pytest.raises(
        UsageError, match="no attribute 'save_pretrained'(?s:.*)the folder that it was loaded from is what there is to keep"
    ):
        unet.save_pretrained("x")


def test_cannot_be_trained(dropin: DropInModel) -> None:
    assert not dropin.training
    assert dropin.eval() is dropin
    assert dropin.requires_grad_(False) is dropin
    with pytest.raises(UsageError, match="a drop-in cannot be trained: the engine's weights were set when the model was quantized"):
        dropin.train()
    with pytest.raises(UsageError, match="a drop-in has no gradients: the engine's weights"):
        dropin.requires_grad_()
    with pytest.raises(UsageError, match=r"no gradients, and input 'sample' asks for them\ncall it under torch.no_grad"):
        dropin(SAMPLE.clone().requires_grad_(), 3)
    with torch.no_grad():
        assert not dropin(SAMPLE.clone().requires_grad_(), 3).sample.requires_grad


def test_has_no_weights_to_quantize(tmp_path: Path, pipe: DDPMPipeline, tiny_bundle: Artifact) -> None:
    message = f"the model to quantize is a drop-in that runs {tiny_bundle.path}: it has no weights\ngive the float model"
    with pytest.raises(UsageError, match=message):
        quantize(pipe, tmp_path / "a")
    with pytest.raises(UsageError, match=message):
        quantize(pipe.unet, tmp_path / "b", scheduler=pipe.scheduler, sample_shape=(1, 8, 8))
