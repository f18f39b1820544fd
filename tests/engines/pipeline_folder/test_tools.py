"""The tools themselves, each in an environment of its own as the documentation sets it up, draw from our folders what diffusers draws."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import dq_deploy
from dq_deploy.decibels import psnr_db
from dq_deploy.engines.pipeline_folder.tools import TOOLS
from tests.engines.pipeline_folder import draw
from tests.tiny_pipelines import randomized, tiny_stable_diffusion, tiny_stable_diffusion_xl

pytestmark = pytest.mark.nightly  # a gigabyte of packages for each

TARGETS = {"optimum-onnx": "onnxruntime", "optimum-intel": "qdq", "openvino-genai": "qdq"}
# openvino-genai gives 8 bits a pixel, cut and not rounded.
LEAST_PSNR = {"optimum-onnx": 90, "optimum-intel": 90, "openvino-genai": 40}
TOP = ("text_model.", "text_projection")
WORDS = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"), "<|startoftext|>", "<|endoftext|>"]


def text_encoder(*, projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=16,
        max_position_embeddings=77, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    torch.manual_seed(1)
    return randomized((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), std=0.5)


def as_published(folder: Path) -> None:
    """In the form that the hub's folders have and every version of the libraries reads: a vocabulary's files, names of weights."""
    for tokenizer in folder.glob("tokenizer*"):
        (tokenizer / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
        (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    for file in folder.glob("text_encoder*/model.safetensors"):
        named = {
            name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": v for name, v in load_file(file).items()
        }
        save_file(named, file, metadata={"format": "pt"})


@pytest.fixture(scope="module", params=["stable-diffusion", "stable-diffusion-xl"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the float pipeline, and both bundles of its denoiser beside it."""
    xl = request.param.endswith("xl")
    pipeline = tiny_stable_diffusion_xl() if xl else tiny_stable_diffusion()
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, merges=[], model_max_length=77)
    second = {"text_encoder_2": text_encoder(projected=True), "tokenizer_2": tokenizer} if xl else {}
    pipeline.register_modules(text_encoder=text_encoder(), tokenizer=tokenizer, **second)
    folder = tmp_path_factory.mktemp(request.param) / "pipeline"
    pipeline.save_pretrained(folder)
    as_published(folder)
    checkpoint = dq_deploy.quantize(
        folder, folder.parent / "checkpoint", prompts=["a cat", "two dogs"], sampler="pipeline", steps=draw.STEPS, calibration_samples=2,
        iterations=0, dilation="none", max_float_share=0.9,
    )  # fmt: skip
    for target in ("qdq", "onnxruntime"):
        dq_deploy.export(checkpoint, folder.parent / target, target=target)
    return folder


@pytest.fixture(scope="module", params=list(TOOLS))
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A tool's name and the programs of a fresh environment with it."""
    root = tmp_path_factory.mktemp(request.param) / "environment"
    subprocess.run([sys.executable, "-m", "venv", root], check=True)
    subprocess.run([root / "bin" / "pip", "install", "-q", *shlex.split(TOOLS[request.param].install)], check=True)
    return request.param, root / "bin"


def test_it_draws_what_diffusers_draws(
    pipeline: Path, environment: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, programs = environment
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bundle = pipeline.parent / TARGETS[tool]
    folder = dq_deploy.pipeline_folder(bundle, tmp_path / "folder", tool, optimum_cli=str(programs / "optimum-cli"))
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([programs / "python", draw.__file__, tool, folder.path, tmp_path / "drawn.npy"], check=True, env=elsewhere)
    drawn = np.load(tmp_path / "drawn.npy")

    pipe, component = _float_pipeline(pipeline), folder.details.component
    setattr(pipe, component, dq_deploy.load(bundle, runtime="onnxruntime" if TARGETS[tool] == "onnxruntime" else "openvino"))
    expected = draw.drawn_by(pipe)
    assert min(psnr_db(expected, drawn)) > LEAST_PSNR[tool]


def _float_pipeline(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
