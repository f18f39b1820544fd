"""Weights under the names that other tools give them are found; what is not a pipeline is named for what it is, with the way on."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from diffusers import DDPMPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from dq_deploy.artifacts.reading import read_json, read_onnx
from dq_deploy.errors import ArtifactError, ResourceError
from dq_deploy.sources import load_source, text_pipeline, weights_sha256
from tests.flow import small_unet
from tests.sources.test_load import edit_json, make_hub_cache
from tests.tiny_pipelines import tiny_conditioned_unet, tiny_stable_diffusion

STEM = "diffusion_pytorch_model"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3438167540\n"


def taken(folder: Path, part: str = "unet", stem: str = STEM) -> dict[str, torch.Tensor]:
    """The tensors, of which the file is gone."""
    path = folder / part / f"{stem}.safetensors"
    tensors = load_file(path)
    path.unlink()
    return tensors


def shards(folder: Path, tensors: dict[str, torch.Tensor], name: str) -> list[Path]:
    names = sorted(tensors)
    paths = [folder / name.format(f"-0000{i}-of-00003") for i in (1, 2, 3)]
    for i, path in enumerate(paths):
        save_file({n: tensors[n] for n in names[i::3]}, path, metadata={"format": "pt"})
    return paths


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (f"{STEM}.bf16.safetensors", torch.bfloat16),
        (f"{STEM}.fp16.safetensors", torch.float16),
        (f"{STEM}.non_ema.safetensors", torch.float32),
        (f"{STEM}{{}}.safetensors", torch.float32),
        (f"{STEM}.fp16{{}}.safetensors", torch.float16),
        (f"{STEM}.bf16{{}}.safetensors", torch.bfloat16),
        (f"{STEM}{{}}.fp16.safetensors", torch.float16),
        ("model.safetensors", torch.float32),
        ("v1.5-pruned-emaonly.safetensors", torch.float32),
    ],
)
def test_weights_under_another_name(folder: Path, name: str, dtype: torch.dtype) -> None:
    tensors = {n: tensor.to(dtype) for n, tensor in taken(folder).items()}
    if "{}" in name:
        shards(folder / "unet", tensors, name)
    else:
        save_file(tensors, folder / "unet" / name, metadata={"format": "pt"})
    before = sorted(path.name for path in folder.rglob("*"))
    source = load_source(folder)
    assert source.sha256 == weights_sha256(tensors)
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_saved_variant_in_shards(saved: Path, tmp_path: Path) -> None:
    """As diffusers itself writes it, with its index."""
    pipeline = DDPMPipeline.from_pretrained(saved)
    pipeline.to(torch.bfloat16).save_pretrained(tmp_path / "p", variant="bf16", max_shard_size="20KB")
    assert len(list((tmp_path / "p/unet").glob("*.bf16-*.safetensors"))) > 1
    assert load_source(tmp_path / "p").sha256 == weights_sha256(pipeline.unet.state_dict())


def test_of_several_copies_the_nearest_to_full_precision(folder: Path) -> None:
    unet, tensors = folder / "unet", taken(folder)
    kinds = {f"{STEM}.non_ema": 3.0, f"{STEM}.fp16": 2.0, f"{STEM}.bf16": 1.0, STEM: 0.0}
    for name, offset in kinds.items():
        save_file({n: t + offset for n, t in tensors.items()}, unet / f"{name}.safetensors", metadata={"format": "pt"})
        assert load_source(folder).sha256 == weights_sha256({n: t + offset for n, t in tensors.items()})


def test_a_shard_that_is_missing(folder: Path) -> None:
    paths = shards(folder / "unet", taken(folder), f"{STEM}.fp16{{}}.safetensors")
    paths[1].unlink()
    with pytest.raises(ArtifactError, match=r"unet has 2 of the 3 shards of its weights: .*00002-of-00003.* is missing\nan interrupted d"):
        load_source(folder)


def test_variants_of_every_part(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    tiny_stable_diffusion().to(torch.float16).save_pretrained(folder, variant="fp16", max_shard_size="5KB")
    encoder = taken(folder, "vae", f"{STEM}.fp16") if (folder / "vae" / f"{STEM}.fp16.safetensors").exists() else {}
    if encoder:
        save_file(encoder, folder / "vae" / "vae-ft-mse.safetensors", metadata={"format": "pt"})
    pipeline = text_pipeline(load_source(folder))
    expected = tiny_stable_diffusion().to(torch.float16)
    for name in ("unet", "text_encoder", "vae"):
        assert weights_sha256(getattr(pipeline, name).state_dict()) == weights_sha256(getattr(expected, name).state_dict())


def test_what_is_not_the_file(folder: Path) -> None:
    path = folder / "unet" / f"{STEM}.safetensors"
    path.write_text(POINTER)
    message = r"unet/diff.* is a Git LFS pointer to a file of 3438167540 bytes, and not that file\nfetch it: git lfs pull"
    with pytest.raises(ArtifactError, match=message):
        load_source(folder)
    path.write_text("<!DOCTYPE html>\n<html>log in</html>")
    with pytest.raises(ArtifactError, match=r"is a web page, and not the file that its name promises\ndownload the file itself"):
        load_source(folder)
    (folder / "model_index.json").write_text(POINTER)
    with pytest.raises(ArtifactError, match=r"model_index.json is a Git LFS pointer"):
        load_source(folder)
    with pytest.raises(ArtifactError, match=r"is a Git LFS pointer"):
        read_onnx(folder / "model_index.json")
    with pytest.raises(ArtifactError, match=r"is a Git LFS pointer"):
        read_json(folder / "model_index.json", "JSON")


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_another_tool_has_quantized(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "pipeline"
    tiny_stable_diffusion().save_pretrained(folder)
    edit_json(folder / part / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    message = (
        rf"the weights in .*/{part} are quantized already by bitsandbytes: config.json has a quantization_config\ngive the pipeline in its"
    )
    with pytest.raises(ArtifactError, match=message):
        text_pipeline(load_source(folder))


@pytest.mark.parametrize("name", ["model.onnx", "openvino_model.xml", "flax_model.msgpack", "model.gguf"])
def test_weights_of_another_framework(folder: Path, name: str) -> None:
    taken(folder)
    (folder / "unet" / name).write_bytes(b"x")
    with pytest.raises(ArtifactError, match=f"has no weights of PyTorch .*, only {name}\ngive the pipeline that it was made from"):
        load_source(folder)


def lora(path: Path) -> None:
    unet = tiny_conditioned_unet()
    unet.add_adapter(LoraConfig(target_modules=["to_q"]))
    save_file({n: t.contiguous() for n, t in unet.state_dict().items() if "lora" in n}, path)


def tensors(path: Path, *names: str) -> None:
    save_file({name: torch.zeros(1) for name in names}, path)


def graph(path: Path) -> None:
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [], [])), path)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "x.safetensors": (lora, r"is a LoRA, which changes a model and is not one itself\ngive the pipeline that it is for, with --lora FILE"),
    "kohya.safetensors": (lambda p: tensors(p, "lora_unet_down_to_q.lora_down.weight", "lora_unet_down_to_q.alpha"), "is a LoRA"),
    "sd15.safetensors": (
        lambda p: tensors(p, "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.a"),
        r"is a single-file checkpoint, not a diffusers pipeline folder\nin Python, .*from_single_file\(FILE\).save_pretrained\(DIR\)",
    ),
    "flux1-dev.safetensors": (lambda p: tensors(p, "double_blocks.0.img_attn.qkv.weight"), "is a single-file checkpoint"),
    "other.safetensors": (
        lambda p: tensors(p, "a", "b"),
        r"holds 2 tensors \(a, b\) and no pipeline\nload them into their module; from",
    ),
    "lfs.safetensors": (lambda p: p.write_text(POINTER), "is a Git LFS pointer"),
    "broken.safetensors": (lambda p: p.write_bytes(b"1234567890"), "not a valid safetensors file"),
    "x.ckpt": (
        lambda p: torch.save({"a": torch.zeros(1)}, p),
        r"is a pickled checkpoint, which can run code.*\nif you trust it",
    ),
    "x.pt": (lambda p: torch.save({"a": torch.zeros(1)}, p), "is a pickled checkpoint"),
    "x.bin": (lambda p: p.write_bytes(b"\x80\x02}"), "is a pickled checkpoint"),
    "script.pt": (lambda p: torch.jit.save(torch.jit.script(torch.nn.ReLU()), p), "is a TorchScript program.*\nload the module itself"),
    "program.pt2": (
        lambda p: torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(1),)), p),
        r"is a program that torch.export wrote",
    ),
    "x.gguf": (lambda p: p.write_bytes(b"GGUF\x03\0\0\0"), r"is a GGUF file, whose weights are quantized already\ngive the PyTorch model"),
    "x.onnx": (graph, r"is an ONNX graph, and what is quantized here are PyTorch models\ngive the PyTorch model that it was made from"),
    "x.engine": (lambda p: p.write_bytes(b"ftrt"), r"is a TensorRT engine\ngive"),
    "x.zip": (lambda p: zipfile.ZipFile(p, "w").close(), r"is an archive\nunpack it"),
    "x.txt": (lambda p: p.write_text("?"), r"is a file, not a diffusers pipeline folder\ngive the folder that holds model_index.json"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    make, message = FILES[name]
    make(tmp_path / name)
    with pytest.raises(ArtifactError, match=message):
        load_source(tmp_path / name)


def config(**content: object) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(content)) and None


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "denoiser": (
        lambda p: small_unet().save_pretrained(p),
        r"it is a UNet2DModel alone, without its scheduler\nfrom Python: dq_deploy.quantize\(UNet2DModel.from_pretrained\(DIR\)",
    ),
    "transformers": (config(architectures=["LlamaForCausalLM"], model_type="llama"), "it is the transformers model LlamaForCausalLM"),
    "adapter": (lambda p: (p / "adapter_config.json").write_text("{}"), r"it is an adapter \(LoRA\)\ngive the pipeline that it is for"),
    "one file": (lambda p: graph(p / "model.onnx"), "no model_index.json; .*model.onnx is an ONNX graph"),
    "nothing": (lambda _: None, r"it has no model_index.json\n`pipeline.save_pretrained\(DIR\)` writes one"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    make, message = FOLDERS[name]
    make(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        load_source(tmp_path)


def test_near_a_pipeline(folder: Path, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"it is a part of the pipeline in {folder}\ngive that folder"):
        load_source(folder / "unet")
    with pytest.raises(ArtifactError, match=rf"is a file of the pipeline in {folder}\ngive the folder: {folder}"):
        load_source(folder / "unet" / f"{STEM}.safetensors")
    with pytest.raises(ArtifactError, match=rf"what lies below it has one: pipeline\ngive one of these: {folder}"):
        load_source(tmp_path)
    snapshot = make_hub_cache(saved, tmp_path / "hub", "some/model")
    with pytest.raises(ArtifactError, match=rf"what lies below it has one: snapshots/0+\ngive one of these: {snapshot}"):
        load_source(snapshot.parents[1])
    with pytest.raises(ArtifactError, match=rf"is a file of the pipeline in {snapshot}"):
        load_source(snapshot / "unet" / f"{STEM}.safetensors")


def test_out_of_memory_is_no_damaged_file(folder: Path) -> None:
    """Torch's own error, from a network that no machine can hold."""
    edit_json(folder / "unet/config.json", block_out_channels=[1 << 24])
    with pytest.raises(ResourceError, match=r"out of memory while loading the UNet2DModel in .*unet: .* were requested"):
        load_source(folder)
