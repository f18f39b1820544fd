"""Convolutions of the ``onnxruntime`` target: integer products of patches, or in float with the checkpoint's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dq_deploy.accuracy import check
from dq_deploy.accuracy.local import local_parity
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner, optimized_operators
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters import export
from dq_deploy.exporters.convolutions import float_convolutions, in_float
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.graph.modules import named_quantizers
from tests.flow import altered_manifest
from tests.nightly import mostly_nightly
from tests.tiny import PlainUNet, make_checkpoint, resealed, run, snr_db

GROUPED = {"depthwise", "grouped"}
CONVOLUTIONS = {*GROUPED, "down", "up", "last"}
LEFT = {"auto": GROUPED, "integer": set[str](), "float": CONVOLUTIONS}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Channels enough for integer kernels to pay; kernels 3×3 and 1×3, strides, dilations and groups among them."""
    return make_checkpoint(PlainUNet(width=32), tmp_path_factory.mktemp("wide") / "checkpoint")


@pytest.fixture(scope="module")
def bundles(wide: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("bundles")
    return {choice: export(wide.artifact, folder / choice, target="onnxruntime", convolutions=choice) for choice in LEFT}  # type: ignore[arg-type]


def inputs(seed: int = 1, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.tensor([0.0, 400.0, 990.0])[:batch]


@pytest.mark.parametrize("choice", LEFT)
def test_what_is_left_in_float_is_said_and_judged_as_such(wide: Checkpoint, bundles: dict[str, Artifact], choice: str) -> None:
    details = bundles[choice].manifest.details
    assert details["convolutions"] == choice
    assert set(details["float_convolutions"]) == LEFT[choice]
    widths = {layer["name"]: layer["activation_bits"] for layer in details["layers"] if layer["op"] == "conv2d"}
    assert {name for name, bits in widths.items() if bits == 16} == LEFT[choice]
    assert {site["name"].removesuffix(".input") for site in details["quantizers"]} & CONVOLUTIONS == CONVOLUTIONS - LEFT[choice]
    verdict = check(bundles[choice], wide.artifact)
    assert verdict, verdict.failures
    assert {row.layer for row in verdict.layers} == {layer.name for layer in wide.details.layers}


@pytest.mark.parametrize("choice", LEFT)
def test_every_product_is_what_was_chosen(bundles: dict[str, Artifact], choice: str) -> None:
    operators = optimized_operators(bundles[choice].path / "model.onnx")
    integer = len(bundles[choice].manifest.details["layers"]) - len(LEFT[choice])
    assert operators.count("MatMulIntegerToFloat") == integer
    assert operators.count("Conv") == 1 + len(LEFT[choice])  # the first layer
    assert not {"DequantizeLinear", "MatMulInteger", "ConvInteger", "Gemm"}.intersection(operators)


def test_float_convolutions_keep_their_codes_in_the_file(bundles: dict[str, Artifact], tmp_path: Path) -> None:
    """And ONNX Runtime unpacks them once, when it loads the graph."""
    file = bundles["float"].path / "model.onnx"
    graph = onnx.load(file).graph
    stored = {i.name: i.data_type for i in graph.initializer}
    assert {stored[f"{name}.weight.codes"] for name in CONVOLUTIONS} == {onnx.TensorProto.INT8}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    left = {node.name for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    unpacking = {node.name for node in graph.node if node.name.endswith(("/UnpackWeight", "/ScaleWeight"))}
    assert len(unpacking) == 2 * len(CONVOLUTIONS)
    assert not unpacking & left


@pytest.mark.parametrize("choice", LEFT)
def test_a_batch_of_several_timesteps(wide: Checkpoint, bundles: dict[str, Artifact], choice: str) -> None:
    x, t = inputs()
    reference = float_convolutions(wide, LEFT[choice])
    with torch.no_grad():
        expected = reference.model(x, t)
    assert snr_db(expected, run(bundles[choice], x, t)) > 60
    got = OnnxRuntimeRunner(bundles[choice]).run({wide.details.inputs[0]: x.numpy(), "timestep": t.numpy()})
    assert snr_db(expected, torch.from_numpy(got)) > 30  # sums in another order move codes at ties


def test_the_reference_without_their_quantizers_is_another_network(wide: Checkpoint) -> None:
    """Else the comparison above would not tell them apart."""
    x, t = inputs()
    with torch.no_grad():
        assert snr_db(float_convolutions(wide, CONVOLUTIONS).model(x, t), wide.model(x, t)) < 55


@pytest.mark.parametrize("choice", LEFT)
def test_half_precision(wide: Checkpoint, tmp_path: Path, choice: Any) -> None:
    made = export(wide.artifact, tmp_path / "bundle", target="onnxruntime", convolutions=choice, dtype="fp16")
    verdict = check(made, wide.artifact)
    assert verdict, verdict.failures


def test_a_wrong_pixel_is_found(wide: Checkpoint, bundles: dict[str, Artifact], tmp_path: Path) -> None:
    bundle = altered_manifest(bundles["auto"], tmp_path / "bundle")
    model = onnx.load(bundle.path / "model.onnx")
    pixels = next(i for i in model.graph.initializer if i.name.startswith("dq_deploy.pixels"))
    pixels.CopyFrom(onnx.numpy_helper.from_array(np.roll(onnx.numpy_helper.to_array(pixels), 1), pixels.name))
    onnx.save(model, bundle.path / "model.onnx")
    changed = open_artifact(resealed(bundle.path), "bundle")
    reference = float_convolutions(wide, GROUPED)
    assert not all(row.passed for row in local_parity(changed, reference, wide.reference()))


def test_few_channels_are_left_in_float(plain_checkpoint: Checkpoint) -> None:
    assert set(in_float(plain_checkpoint, "auto")) == CONVOLUTIONS  # of 8 and 16 channels


def test_choices_that_are_none(wide: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown choice of convolutions 'int8'\nchoices: auto, integer, float"):
        export(wide.artifact, tmp_path / "bundle", target="onnxruntime", convolutions="int8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'float' is a choice for target onnxruntime, and the target is qdq\nleave it out"):
        export(wide.artifact, tmp_path / "bundle", target="qdq", convolutions="float")


def test_a_manifest_that_names_no_convolution(wide: Checkpoint, bundles: dict[str, Artifact], tmp_path: Path) -> None:
    details = {**bundles["auto"].manifest.details, "float_convolutions": ["depthwise", "out"]}
    bundle = altered_manifest(bundles["auto"], tmp_path / "bundle", details=details)
    with pytest.raises(ArtifactError, match="the checkpoint has no quantized convolution out\nexport the bundle again"):
        check(bundle, wide.artifact)


@pytest.mark.parametrize("rule", mostly_nightly(["symmetric", "layerwise", "smoothquant"], "layerwise"))
def test_a_dilated_convolution_in_float_is_nearer_to_the_float_model_than_in_integers(rule: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(PlainUNet(), tmp_path / "checkpoint", dilation=rule, iterations=0)
    quantizers = dict(named_quantizers(checkpoint.model))
    assert any(bool((quantizers[f"{name}.input"].dilation != 1).any()) for name in CONVOLUTIONS if f"{name}.input" in quantizers)
    found = {}
    for choice in ("float", "integer"):
        bundle = export(checkpoint.artifact, tmp_path / choice, target="onnxruntime", convolutions=choice)  # type: ignore[arg-type]
        verdict = check(bundle, checkpoint.artifact)
        assert verdict, verdict.failures
        found[choice] = [row.snr_bundle_db for row in verdict.timesteps]
    assert min(found["float"]) > max(found["integer"])
