"""Codebooks that are fitted to a layer's weight, and a network whose weights are made of codewords, the whole way."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from dq_deploy.accuracy import check
from dq_deploy.artifacts import Artifact
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters import export
from dq_deploy.formats.codebook import Codebook
from dq_deploy.quantization import load_checkpoint
from dq_deploy.quantization.bits.choose import choose_bits
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.rounding.codebooks import Fitted, fit, fitting_operations
from dq_deploy.quantization.rounding.columns import Rounder
from dq_deploy.quantization.rounding.layerwise import rounding_operations
from dq_deploy.quantization.weights import CodebookWeight
from dq_deploy.quantization.weights.codebook import sums
from tests.tiny import SHAPE, PlainUNet, change_tensors, make_checkpoint, scheduler, snr_db

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
TWO_BITS = Codebook(length=8, books=2)


def problem(rows: int = 96, inputs: int = 288) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the moments of inputs that lean on each other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * inputs, inputs // 3, generator=generator) @ torch.randn(inputs // 3, inputs, generator=generator) * 0.2
    x += torch.randn(4 * inputs, inputs, generator=generator)
    return 0.05 * torch.randn(rows, inputs, generator=generator), (x.T @ x / len(x)).double()


def fitted(weight: torch.Tensor, moments: torch.Tensor, codebook: Codebook) -> Fitted:
    return fit(weight, moments, codebook, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("codebook", "gain"), [(Codebook(4, 1), 1.5), (TWO_BITS, 1.5), (Codebook(8, 3), 1.1)], ids=str)
def test_as_many_bits_say_more_than_gptq(codebook: Codebook, gain: float) -> None:
    weight, moments = problem()
    most, double = 2.0 ** (codebook.bits - 1) - 1, weight.double()
    factors = torch.linspace(0.3, 1, 8, dtype=torch.float64)[:, None, None]
    scales = (double.abs().amax(dim=1, keepdim=True) / most * factors).expand(-1, -1, weight.shape[1])
    _, errors = Rounder(moments.clone()).candidates(double, scales.contiguous(), torch.full((len(weight),), most, dtype=torch.float64))
    assert float(errors.amin(dim=0).sum() / fitted(weight, moments, codebook).error.sum()) > gain


def test_what_is_said_is_what_the_codes_make() -> None:
    weight, moments = problem()
    found = fitted(weight, moments, TWO_BITS)
    assert found.codes.shape == (96, 36, 2)
    assert found.codes.dtype == torch.uint8
    assert torch.equal(found.codewords, found.codewords.round())
    assert float(found.codewords.abs().max()) <= 127
    error = weight - found.scale[:, None] * sums(found.codes, found.codewords).clamp(-128, 127)
    expected = torch.einsum("ri,ij,rj->r", error.double(), moments, error.double())
    assert torch.allclose(found.error.double(), expected, rtol=1e-3)
    assert float(found.error.sum()) < 0.6 * float(found.nearest.sum())


def test_the_same_twice_and_an_empty_row_stays_empty() -> None:
    weight, moments = problem(24, 64)
    weight[3] = 0
    first, second = (fitted(weight, moments, Codebook(4, 1)) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scale, second.scale)
    assert float(first.error[3]) < 1e-12
    assert bool((first.scale > 0).all())


@pytest.mark.parametrize(("length", "books"), [(3, 1), (8, 5), (8, 1), (2, 2), (4, 0)])
def test_a_codebook_without_a_format(length: int, books: int) -> None:
    with pytest.raises(ValueError, match=f"{books} books of codewords of {length} weights: lengths are 2, 4, 8"):
        Codebook(length, books)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("codebooks") / "checkpoint"
    return make_checkpoint(PlainUNet(width=48), folder, preset="vq2a8", rounding="auto", iterations=2)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint) -> Artifact:
    return export(checkpoint.artifact, checkpoint.artifact.path.parent / "bundle", target="qdq", dtype="fp32")


def made_of_codewords(checkpoint: Checkpoint) -> dict[str, CodebookWeight]:
    return {name: layer for name, layer in checkpoint.layers.items() if isinstance(layer, CodebookWeight)}


def test_layers_for_which_it_pays_are_made_of_codewords(checkpoint: Checkpoint) -> None:
    assert set(made_of_codewords(checkpoint)) == {"down", "qkv"}  # the others are too small, or have groups
    bits = {layer.name: layer.weight_bits for layer in checkpoint.details.layers if layer.op != "matmul"}
    assert bits == {"down": 2, "qkv": 2, "depthwise": 4, "grouped": 4, "out": 4, "up": 4, "embed.0": 4, "embed.2": 4, "last": 8}
    entries = {layer.name: layer.weight_codebook for layer in checkpoint.details.layers}
    assert entries["down"] is not None
    assert (entries["down"].length, entries["down"].books) == (8, 2)
    assert entries["out"] is None
    rounded = {entry.layer: entry.error_ratio for entry in checkpoint.details.rounding or []}
    assert rounded["down"] < 0.8


def test_a_checkpoint_stores_indices_and_codewords(checkpoint: Checkpoint) -> None:
    layer = made_of_codewords(checkpoint)["down"]
    stored = layer.tensors()
    assert {part: (tensor.dtype, list(tensor.shape)) for part, tensor in stored.items()} == {
        "weight.codebook_codes": (torch.uint8, [96, 54, 2]),
        "weight.codewords": (torch.int8, [2, 256, 8]),
        "weight.scale": (torch.float32, [96]),
    }
    assert layer.frozen is not None
    again = sums(stored["weight.codebook_codes"], stored["weight.codewords"].float()).clamp(-128, 127)
    assert torch.equal(layer.frozen[0].flatten(1).float(), again)


def test_a_loaded_scale_is_the_stored_one_to_the_last_bit(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint.artifact.path, tmp_path / "changed"))
    scale = torch.linspace(1e-4, 0.05, 96)
    assert not torch.equal(scale.log().exp(), scale)
    loaded = load_checkpoint(change_tensors(folder, lambda t: t.update({"down.weight.scale": scale})))
    frozen = made_of_codewords(loaded)["down"].frozen
    assert frozen is not None
    assert torch.equal(frozen[1], scale)


@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
def test_both_targets_multiply_the_checkpoints_codes(checkpoint: Checkpoint, bundle: Artifact, tmp_path: Path, target: str) -> None:
    made = bundle if target == "qdq" else export(checkpoint.artifact, tmp_path / "bundle", target="onnxruntime")
    for optimized in (False, True):
        verdict = check(made, checkpoint.artifact, optimized=optimized)
        assert verdict, verdict.failures[:3]


def test_a_graph_keeps_the_indices_small_or_has_plain_codes(checkpoint: Checkpoint, bundle: Artifact, tmp_path: Path) -> None:
    held = {i.name: i for i in onnx.load(bundle.path / "model.onnx").graph.initializer}
    for book in range(2):
        assert held[f"down.weight.codebook_codes.{book}"].data_type == TensorProto.INT8
        assert list(held[f"down.weight.codebook_codes.{book}"].dims) == [96, 54]
    storage = {layer.name: layer.weight_storage for layer in bundle.details.layers}  # type: ignore[attr-defined]
    assert (storage["down"], storage["out"], storage["last"]) == ("codebook", "int4", "int8")
    plain = export(checkpoint.artifact, tmp_path / "plain", target="qdq", weight_storage="int8")
    assert {layer.weight_storage for layer in plain.details.layers} == {"int8", None}
    codes = {i.name: i for i in onnx.load(plain.path / "model.onnx").graph.initializer}["down.weight.codes"]
    frozen = made_of_codewords(checkpoint)["down"].frozen
    assert frozen is not None
    assert np.array_equal(onnx.numpy_helper.to_array(codes), frozen[0].numpy())


def test_openvino_unpacks_once_and_multiplies_integers(checkpoint: Checkpoint, bundle: Artifact) -> None:
    sample, timestep = torch.randn(2, *SHAPE), torch.tensor([0.0, 750.0])
    with torch.no_grad():
        expected = checkpoint.model(sample, timestep)
    runner = OpenVinoRunner(bundle)
    got = runner.run({"x": sample.numpy(), "timestep": timestep.numpy()})
    assert snr_db(expected, torch.from_numpy(got)) > 25
    assert sum(precision == "int8" for _, precision in runner.products()) >= 4


@needs_rtx
def test_the_compiler_makes_int8_products_and_keeps_the_indices(checkpoint: Checkpoint, bundle: Artifact, tmp_path: Path) -> None:
    whole = export(checkpoint.artifact, tmp_path / "int8", target="qdq", dtype="fp32", weight_storage="int8")
    small, plain = (
        load_report(build_engine(made, tmp_path / f"{name}-engine", compute_capabilities=["8.9"]))[0]
        for name, made in (("small", bundle), ("plain", whole))
    )
    assert {layer.precision for layer in small.layers} == {"int8"}
    elements = sum(layer.frozen[0].numel() for layer in made_of_codewords(checkpoint).values() if layer.frozen)
    words = 2 * 256 * 8 * len(made_of_codewords(checkpoint))
    assert plain.weights_bytes - small.weights_bytes > 0.75 * elements - words


def test_distillation_moves_codewords_and_scales(tmp_path: Path) -> None:
    options: dict[str, Any] = {"preset": "vq2a8", "rounding": "auto", "dilation": "none"}
    fixed, trained = (
        made_of_codewords(make_checkpoint(PlainUNet(width=48), tmp_path / str(count), iterations=count, **options))["qkv"].tensors()
        for count in (0, 24)
    )
    assert torch.equal(fixed["weight.codebook_codes"], trained["weight.codebook_codes"])
    assert not torch.equal(fixed["weight.codewords"], trained["weight.codewords"])
    assert not torch.equal(fixed["weight.scale"], trained["weight.scale"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "vq2a8", "weight_bits": 4}, "weight_bits is 4, and the codebook has 2 bits"),
        ({"preset": "vq2a8", "activation_bits": 16}, "a codebook goes with integer activations"),
        ({"preset": "vq3a8", "rounding": "nearest"}, "a codebook is fitted to the calibration samples"),
        ({"codebook": {"length": 8, "books": 7}}, "lengths are 2, 4, 8"),
        ({"codebook": {"length": 8}}, "codebook.books: Field required"),
        ({"codebook": 2}, "codebook"),
    ],
    ids=str,
)
def test_options_that_contradict_a_codebook(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        QuantizeConfig.build(**options)


def test_a_codebook_of_ones_own_and_layers_that_are_kept(tmp_path: Path) -> None:
    assert QuantizeConfig.build(codebook={"length": 4, "books": 2}).weight_bits == 4
    found = make_checkpoint(PlainUNet(width=48), tmp_path / "kept", preset="vq2a8", rounding="auto", keep={"qkv": 8, "down": 4})
    assert not made_of_codewords(found)
    with pytest.raises(UsageError, match="--auto-bits measures layers of integer weights"):
        choose_bits(PlainUNet(width=48), "0.2x", preset="vq2a8", scheduler=scheduler(), sample_shape=SHAPE)


def test_the_fitting_is_counted() -> None:
    outputs, inputs = 64, 512
    searched = [fitting_operations((1, outputs, inputs), codebook) for codebook in (Codebook(4, 1), TWO_BITS, Codebook(8, 3))]
    assert searched == sorted(searched)
    assert searched[0] > rounding_operations((1, outputs, inputs))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({"down.weight.codewords": t["down.weight.codewords"][:1]}), r"torch.int8 \[1, 256, 8\], and a weight \[96"),
        (lambda t: t.update({"down.weight.codebook_codes": t["down.weight.codebook_codes"].to(torch.int8)}), "needs torch.uint8"),
        (lambda t: t.update({"down.weight.scale": -t["down.weight.scale"]}), "zero, negative or subnormal"),
        (lambda t: t.pop("down.weight.codewords"), "'down.weight.codewords' is not among the tensors"),
    ],
)
def test_a_damaged_codebook_is_refused(checkpoint: Checkpoint, tmp_path: Path, change: Any, words: str) -> None:
    folder = tmp_path / "changed"
    folder.mkdir()
    for file in checkpoint.artifact.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ArtifactError, match=words):
        load_checkpoint(change_tensors(folder, change))


def test_the_graph_says_the_codebook(checkpoint: Checkpoint) -> None:
    entry = json.loads((checkpoint.artifact.path / "graph.json").read_text())["layers"]["qkv"]
    assert entry == {"op": "codebook-linear", "format": "VQ2", "shape": [288, 96], "length": 8, "books": 2}
