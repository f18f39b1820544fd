"""Weights of up to 4 bits, stored two to a byte."""

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
from dq_deploy.engines.build import build_engine, load_report
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.errors import UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.weights import QuantizedWeight
from tests.nightly import mostly_nightly
from tests.tiny import SHAPE, make_checkpoint, snr_db, tiny_unet

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")


@pytest.fixture(scope="module", params=mostly_nightly([4, 3], 4))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("int4") / "checkpoint"
    return make_checkpoint(tiny_unet(), folder, weight_bits=request.param, activation_bits=8, reference_samples=16)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint) -> Artifact:
    return export(checkpoint.artifact, checkpoint.artifact.path.parent / "bundle", target="qdq", dtype="fp32")


def weights_of(made: Artifact) -> dict[str, onnx.TensorProto]:
    graph = onnx.load(made.path / "model.onnx").graph
    return {i.name.removesuffix(".weight.codes"): i for i in graph.initializer if i.name.endswith(".weight.codes")}


def test_codes_are_the_checkpoints_in_half_a_byte(checkpoint: Checkpoint, bundle: Artifact) -> None:
    found = weights_of(bundle)
    stated = {layer["name"]: layer.get("weight_storage") for layer in bundle.manifest.details["layers"]}
    for name, layer in checkpoint.layers.items():
        if not isinstance(layer, QuantizedWeight) or layer.frozen is None:
            assert stated[name] is None
            continue
        small = layer.bits <= 4
        assert (found[name].data_type, stated[name]) == ((TensorProto.INT4, "int4") if small else (TensorProto.INT8, "int8"))
        codes = layer.frozen[0].numpy()
        assert np.array_equal(numpy_helper.to_array(found[name]).astype(np.int8), codes if codes.ndim == 4 else codes.T)
        if small:
            assert len(found[name].raw_data) == (codes.size + 1) // 2
    assert "int4" in stated.values()


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


@needs_rtx
@pytest.mark.parametrize("checkpoint", [4], indirect=True)
def test_the_compiler_makes_int8_products_of_half_the_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    reports = {}
    for storage in ("auto", "int8"):
        made = export(checkpoint.artifact, tmp_path / storage, target="qdq", weight_storage=storage)  # type: ignore[arg-type]
        (reports[storage],) = load_report(build_engine(made, tmp_path / f"{storage}-engine", compute_capabilities=["8.9"]))
    for report in reports.values():
        assert {layer.precision for layer in report.layers} == {"int8"}
    small = [layer for layer in checkpoint.layers.values() if isinstance(layer, QuantizedWeight) and layer.bits <= 4]
    elements = sum(layer.frozen[0].numel() for layer in small if layer.frozen)
    assert reports["int8"].weights_bytes - reports["auto"].weights_bytes > 0.4 * elements
