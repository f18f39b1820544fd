"""A LoRA into a bundle or an engine in one step: what came of it is what exporting and building by hand would have made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dq_deploy import build_engine, combine, export, quantize, refit
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.engines.build.engine import load_report
from dq_deploy.errors import UsageError
from tests.command_line import Cli, assert_refused
from tests.tiny_pipelines import tiny_lora, tiny_stable_diffusion

QUICK: dict[str, Any] = {
    "steps": 3, "calibration_samples": 4, "iterations": 0, "max_float_share": 0.4, "final_samples": 0, "prompts": ["a cat", "dog"],
    "guidance_scale": 1.0, "dilation": "none", "rounding": "nearest",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a LoRA beside it, its checkpoint, and two bundles of this."""
    root = tmp_path_factory.mktemp("refit")
    pipeline = tiny_stable_diffusion()
    pipeline.save_pretrained(root / "pipeline")
    tiny_lora(root / "lora", pipeline.unet)
    quantize(root / "pipeline", root / "checkpoint", **QUICK)
    export(root / "checkpoint", root / "qdq", target="qdq", dtype="fp32", attention="float")
    export(root / "checkpoint", root / "ort", target="onnxruntime", convolutions="integer")
    return root


def lora(root: Path) -> Path:
    return root / "lora" / "pytorch_lora_weights.safetensors"


def files(artifact: Artifact) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in artifact.manifest.files.items()}


def test_a_bundle_with_the_options_that_it_has(root: Path, tmp_path: Path, cli: Cli) -> None:
    asked = ("--lora", lora(root), "--lora-scale", "0.8", "--format", "json")
    ended = cli("refit", root / "ort", "--checkpoint", root / "checkpoint", "-o", tmp_path / "styled", *asked)
    assert ended.code == 0, ended.err
    made, checkpoint = open_artifact(tmp_path / "styled", "bundle"), tmp_path / "styled.checkpoint"
    assert json.loads(ended.out)["bundle"] == str(made.path)
    refit(root / "checkpoint", tmp_path / "by-hand", lora=lora(root), lora_scale=0.8)
    by_hand = export(tmp_path / "by-hand", tmp_path / "by-hand-ort", target="onnxruntime", convolutions="integer")
    assert files(made) == files(by_hand) != files(open_artifact(root / "ort", "bundle"))
    assert made.details.convolutions == "integer"
    assert cli("check", made.path, "--checkpoint", checkpoint).code == 0
    # Again, from either: another LoRA replaces this one.
    for number, parent in enumerate((root / "checkpoint", checkpoint)):
        back = refit(made, tmp_path / f"back-{number}", checkpoint=parent, lora=lora(root), lora_scale=0.4)
        assert (back.details.source, files(back)) != (made.details.source, files(made))


def test_an_engine_is_built_again_as_it_was(root: Path, tmp_path: Path, cli: Cli) -> None:
    old = build_engine(root / "qdq", tmp_path / "engine", backend="openvino", batch=(1, 2, 3), int8_kernels="always")
    ended = cli("refit", old.path, "--checkpoint", root / "checkpoint", "-o", tmp_path / "styled", "--lora", lora(root))
    assert ended.code == 0, ended.err
    made = open_artifact(tmp_path / "styled", "engine")
    assert made.details.batch == (1, 2, 3)
    assert made.details.options == {"int8_kernels": "always"}
    assert made.details.bundle == str(tmp_path / "styled.bundle")
    bundle = open_artifact(tmp_path / "styled.bundle", "bundle")
    assert (bundle.details.attention, bundle.details.dtype) == ("float", "fp32")
    assert [report.summary()["kernels"] for report in load_report(made)] == [report.summary()["kernels"] for report in load_report(old)]
    assert files(made)["model.bin"] != files(old)["model.bin"]
    refit(root / "checkpoint", tmp_path / "by-hand", lora=lora(root))
    export(tmp_path / "by-hand", tmp_path / "by-hand-qdq", target="qdq", dtype="fp32", attention="float")
    by_hand = build_engine(
        tmp_path / "by-hand-qdq", tmp_path / "by-hand-engine", backend="openvino", batch=(1, 2, 3), int8_kernels="always"
    )
    assert files(made)["model.bin"] == files(by_hand)["model.bin"]


@pytest.mark.nightly
def test_an_engine_of_several_profiles(root: Path, tmp_path: Path) -> None:
    profiles = [{"batch": (1, 1, 2)}, {"batch": (3, 4, 4)}]
    options: dict[str, Any] = {"backend": "tensorrt-rtx", "compute_capabilities": ["8.9"], "optimization_level": 1}
    old = build_engine(root / "qdq", tmp_path / "engine", profiles=profiles, **options)
    made = refit(old, tmp_path / "styled", checkpoint=root / "checkpoint", lora=lora(root))
    for name in ("profiles", "batch", "capabilities", "options", "sizes"):
        assert getattr(made.details, name) == getattr(old.details, name), name
    assert len(made.details.profiles) == 2
    assert made.details.checkpoint_sha256 == open_artifact(tmp_path / "styled.checkpoint", "checkpoint").as_parent.manifest_sha256


def test_what_is_refused_before_anything_is_made(root: Path, tmp_path: Path, cli: Cli) -> None:
    refitted = ("refit", root / "qdq", "-o", tmp_path / "out", "--lora", lora(root))
    assert_refused(cli(*refitted), 2, "qdq is a bundle, which holds no float weights", "the checkpoint that it came from: --checkpoint DIR")
    other = quantize(root / "pipeline", tmp_path / "other", **{**QUICK, "seed": 1})
    assert_refused(cli(*refitted, "--checkpoint", other.path), 2, "qdq was not made from", "or a refit of that")
    (tmp_path / "out.checkpoint").mkdir()
    assert_refused(cli(*refitted, "--checkpoint", root / "checkpoint"), 2, "out.checkpoint already exists")
    itself = cli("refit", other.path, "-o", tmp_path / "new", "--no-lora", "--checkpoint", other.path)
    assert_refused(itself, 2, "is a checkpoint itself, and another is given", "leave --checkpoint out")
    turns = combine([root / "qdq", root / "ort"], tmp_path / "turns", switches=[400.0])
    with pytest.raises(UsageError, match="is a schedule of qdq, ort\nrefit each of them, and combine these"):
        refit(turns, tmp_path / "new", lora=lora(root), checkpoint=root / "checkpoint")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "new").exists()
