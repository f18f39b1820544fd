"""Weights of up to 4 bits: stored two to a byte, or as bit planes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from dq_deploy.accuracy import check
from dq_deploy.artifacts import Artifact
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.errors import UsageError
from dq_deploy.exporters import export, recast
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.weights import QuantizedWeight
from tests.nightly import mostly_nightly
from tests.tiny import SHAPE, make_checkpoint, snr_db, tiny_unet

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")


@pytest.fixture(scope="module", params=mostly_nightly([4, 3, 2], 4, 3))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("int4") / "checkpoint"
    return make_checkpoint(tiny_unet(), folder, weight_bits=request.param, activation_bits=8, reference_samples=16)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint) -> Artifact:
    return export(checkpoint.artifact, checkpoint.artifact.path.parent / "bundle", target="qdq", dtype="fp32")


def weights_of(made: Artifact) -> dict[str, onnx.TensorProto]:
    graph = onnx.load(made.path / "model.onnx").graph
    return {i.name.removesuffix(".weight.codes"): i for i in graph.initializer if i.name.endswith(".weight.codes")}


def unpacked(made: Artifact) -> dict[str, np.ndarray]:
    """By layer: the INT4 codes or bit planes that a graph has together with those of other layers, in the layer's own shape."""
    graph = onnx.load(made.path / "model.onnx").graph
    held = {i.name: i for i in graph.initializer}
    shapes = {n.input[0]: n.input[1] for n in graph.node if n.op_type == "Reshape"}
    found = {}
    for name, codes in held.items():
        if not name.startswith("dq_deploy.int") or not name.endswith(".sizes"):
            continue
        prefix, sizes = name.removesuffix(".sizes"), numpy_helper.to_array(codes)
        split = next(n for n in graph.node if n.name == f"{prefix}/Split")
        if prefix.startswith("dq_deploy.int4_weights"):
            packed = held[f"{prefix}.codes"]
            flat = numpy_helper.to_array(packed)
            assert packed.data_type == TensorProto.INT4
            assert len(packed.raw_data) == (flat.size + 1) // 2
        else:
            planes = [i for other, i in held.items() if other.startswith(f"{prefix}.plane.")]
            flat = of_planes([numpy_helper.to_array(plane) for plane in planes])
            assert {plane.data_type for plane in planes} == {TensorProto.INT8}
            assert sum(len(plane.raw_data) for plane in planes) == flat.size * len(planes) // 8
        for piece, part in zip(split.output, np.split(flat.astype(np.int8), np.cumsum(sizes)[:-1]), strict=True):
            found[shapes[piece].removesuffix(".weight.codes.shape")] = part.reshape(numpy_helper.to_array(held[shapes[piece]]))
    return found


def of_planes(planes: list[np.ndarray]) -> np.ndarray:
    """The codes that bit planes hold in two's complement, the first plane that of the least bit; a byte is of 8 codes, less 128."""
    rows = [[(int(byte) + 128 >> place) & 1 for byte in plane for place in range(8)] for plane in planes]
    worth = [1 << bit for bit in range(len(planes) - 1)] + [-(1 << len(planes) - 1)]
    return np.array(worth) @ np.array(rows)


def test_codes_are_the_checkpoints_in_half_a_byte_or_their_bits(checkpoint: Checkpoint, bundle: Artifact) -> None:
    whole, together, narrow = weights_of(bundle), unpacked(bundle), set()
    stated = {layer["name"]: layer.get("weight_storage") for layer in bundle.manifest.details["layers"]}
    for name, layer in checkpoint.layers.items():
        if not isinstance(layer, QuantizedWeight) or layer.frozen is None:
            assert stated[name] is None
            continue
        small = layer.bits <= 4
        wanted = "int8" if not small else "int4" if layer.bits == 4 or layer.frozen[0].numel() % 8 else "planes"
        assert (name in together, stated[name]) == (small, wanted)
        narrow.add(layer.bits)
        codes = layer.frozen[0].numpy()
        found = together[name] if small else numpy_helper.to_array(whole[name])
        assert np.array_equal(found.astype(np.int8), codes if codes.ndim == 4 else codes.T)
    assert min(narrow) < 8
    assert ("planes" in stated.values()) == (min(narrow) < 4)


def test_one_kernel_unpacks_no_more_than_fits(
    checkpoint: Checkpoint, bundle: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(layer.frozen[0].numel() for layer in checkpoint.layers.values() if layer.frozen is not None)
    monkeypatch.setattr(recast, "_TOGETHER", largest)
    made = export(checkpoint.artifact, tmp_path / "parts", target="qdq", dtype="fp32")
    parts = {n.name: len(n.output) for n in onnx.load(made.path / "model.onnx").graph.node if n.name.endswith("/Split")}
    assert len(parts) > 2
    assert sum(parts.values()) <= len(unpacked(bundle))  # one that is alone needs no Split
    feeds = {"sample": torch.randn(1, *SHAPE).numpy(), "timestep": np.array([250.0], np.float32)}
    assert np.array_equal(*(OnnxRuntimeRunner(found).run(feeds) for found in (made, bundle)))


def test_openvino_multiplies_integers(bundle: Artifact) -> None:
    runner = OpenVinoRunner(bundle, integer=True)
    runner.run({"sample": torch.randn(1, *SHAPE).numpy(), "timestep": np.array([250.0], np.float32)})
    found = runner.products()
    assert {precision for op, precision in found if op == "FullyConnected"} == {"int8"}


def test_both_parity_tests_pass(checkpoint: Checkpoint, bundle: Artifact) -> None:
    for optimized in (False, True):
        verdict = check(bundle, checkpoint.artifact, optimized=optimized)
        assert verdict, verdict.failures
        assert {row.layer for row in verdict.layers} == set(checkpoint.layers)


def test_a_byte_a_weight_where_it_is_asked_for_or_int4_would_not_be_an_integer_product(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for made in (
        export(checkpoint.artifact, tmp_path / "a", target="qdq", weight_storage="int8"),
        export(checkpoint.artifact, tmp_path / "b", target="onnxruntime"),
    ):
        assert {i.data_type for i in weights_of(made).values()} == {TensorProto.INT8}
        assert "int4" not in {layer.get("weight_storage") for layer in made.manifest.details["layers"]}
    with pytest.raises(UsageError, match="unknown weight storage 'int4'"):
        export(checkpoint.artifact, tmp_path / "c", target="qdq", weight_storage="int4")  # type: ignore[arg-type]


def test_openvino_computes_the_same(checkpoint: Checkpoint, bundle: Artifact) -> None:
    sample, timestep = torch.randn(3, *SHAPE), torch.tensor([0.0, 250.0, 750.0])
    with torch.no_grad():
        expected = checkpoint.model(sample, timestep)
    got = OpenVinoRunner(bundle).run({"sample": sample.numpy(), "timestep": timestep.numpy()})
    assert snr_db(expected, torch.from_numpy(got)) > 25


@needs_rtx  # of 3 bits always: it has layers of both forms
@pytest.mark.parametrize("checkpoint", mostly_nightly([4, 3, 2], 3), indirect=True)
def test_the_compiler_makes_int8_products_and_keeps_the_bits(checkpoint: Checkpoint, tmp_path: Path) -> None:
    reports = {}
    for storage in ("auto", "int8"):
        made = export(checkpoint.artifact, tmp_path / storage, target="qdq", weight_storage=storage)  # type: ignore[arg-type]
        (reports[storage],) = load_report(build_engine(made, tmp_path / f"{storage}-engine", compute_capabilities=["8.9"]))
    for report in reports.values():
        assert {layer.precision for layer in report.layers} == {"int8"}
    small = [layer for layer in checkpoint.layers.values() if isinstance(layer, QuantizedWeight) and layer.bits <= 4]
    elements = sum(layer.frozen[0].numel() for layer in small if layer.frozen)
    saved = 1 - min(layer.bits for layer in small) / 8
    tables = 3 * 2048  # of bit planes
    assert reports["int8"].weights_bytes - reports["auto"].weights_bytes > 0.9 * saved * elements - tables
