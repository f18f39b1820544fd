from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters import TARGETS, bundle, export
from dq_deploy.formats import ScaleSource
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.weights import QuantizedWeight
from tests.nightly import mostly_nightly
from tests.tiny import SHAPE, WHOLE, PlainUNet, make_checkpoint, run, snr_db, tiny_unet


@pytest.fixture(scope="module")
def bundles(unet_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """fp32 bundles of the UNet with attention, for both targets."""
    folder = tmp_path_factory.mktemp("bundles")
    return {target: export(unet_checkpoint.artifact, folder / target, target=target, dtype="fp32", **WHOLE[target]) for target in TARGETS}


def graph_of(made: Artifact) -> onnx.GraphProto:
    return onnx.load(made.path / "model.onnx").graph


def initializers(made: Artifact) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in graph_of(made).initializer}


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_and_output_keep_their_names_order_and_types(bundles: dict[str, Artifact], target: str) -> None:
    graph = graph_of(bundles[target])
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    timestep = ["batch"] if target == "qdq" else [1]
    assert list(shapes.items()) == [("sample", ["batch", 1, 8, 8]), ("timestep", timestep)]
    assert [o.name for o in graph.output] == ["out_sample"]
    assert {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]} == {onnx.TensorProto.FLOAT}
    stated = bundles[target].manifest.details["inputs"]
    assert [(i["name"], i["dtype"], i["shape"]) for i in stated] == [(n, "float32", s) for n, s in shapes.items()]
    assert {o.domain: o.version for o in onnx.load(bundles[target].path / "model.onnx").opset_import} == {"": 21}


@pytest.mark.parametrize("target", TARGETS)
def test_the_tables_are_in_the_graph_by_name_with_the_checkpoints_values(
    bundles: dict[str, Artifact], unet_checkpoint: Checkpoint, target: str
) -> None:
    found = initializers(bundles[target])
    for name, quantizer in unet_checkpoint.quantizers.items():
        if quantizer.source is ScaleSource.COMPUTED:
            continue
        scale, zero_point = quantizer.scale_table().numpy(), quantizer.zero_point_table().numpy().astype(np.float32)
        if quantizer.fixed:
            continue
        assert np.array_equal(found[f"{name}.scale"], scale)
        if target == "onnxruntime":
            codes = found[f"{name}.zero_point"]
            assert np.array_equal(codes.astype(np.float32) - (128 if codes.dtype == np.uint8 else 0), zero_point)
        elif not quantizer.symmetric:
            assert np.array_equal(found[f"{name}.zero_point"], zero_point)
    for name, layer in unet_checkpoint.layers.items():
        if isinstance(layer, QuantizedWeight) and layer.frozen:
            codes = layer.frozen[0].numpy()
            if codes.ndim == 2:
                codes = codes.T
            elif target == "onnxruntime":
                codes = codes.transpose(2, 3, 1, 0).reshape(-1, len(codes))  # of patches
            assert np.array_equal(found[f"{name}.weight.codes"], codes)
            assert np.array_equal(found[f"{name}.weight.scale"], layer.frozen[1].numpy())


@pytest.mark.parametrize("target", TARGETS)
def test_every_planned_layer_is_an_integer_layer_of_the_graph(
    bundles: dict[str, Artifact], unet_checkpoint: Checkpoint, target: str
) -> None:
    graph, details = graph_of(bundles[target]), bundles[target].manifest.details
    producers = {o: n for n in graph.node for o in n.output}
    planned = {layer.name: layer.op for layer in unet_checkpoint.details.layers}
    assert {layer["name"]: layer["op"] for layer in details["layers"]} == planned
    dequantized = {o for o, n in producers.items() if n.op_type == "DequantizeLinear"}
    integer = {
        n.name.rsplit("/", 1)[0]
        for n in graph.node
        if n.op_type == "MatMulInteger" or (n.op_type in ("Conv", "MatMul") and dequantized.issuperset(n.input[:2]))
    }
    assert integer == set(planned)
    products = [n for n in graph.node if n.op_type in ("Conv", "MatMul", "MatMulInteger", "Gemm", "ConvTranspose", "Einsum")]
    assert len(products) == len(planned) + len(details["float_layers"])
    values = {o for n in graph.node for o in n.output}
    assert {layer["output"] for layer in details["layers"]} <= values
    assert {v for q in details["quantizers"] for v in (q["input"], q["codes"])} <= values
    weights = {i.name: i.data_type for i in graph.initializer if i.name.endswith(".weight.codes")}
    assert set(weights.values()) == {onnx.TensorProto.INT8}
    assert len(weights) == sum(op != "matmul" for op in planned.values())


@pytest.mark.parametrize("target", TARGETS)
def test_a_deep_network_is_as_near_to_the_float_one_as_the_checkpoint(
    bundles: dict[str, Artifact], unet_checkpoint: Checkpoint, target: str
) -> None:
    """Last bits of GroupNorm and softmax differ, a code near a tie flips and that cascades: so errors are compared, not values."""
    reference = unet_checkpoint.reference()
    samples, timestep, _ = reference.flat(slice(None))
    expected = reference.outputs.flatten(0, 1)
    with torch.no_grad():
        torch_snr = snr_db(expected, unet_checkpoint.model(samples, timestep))
    got = run(bundles[target], samples, timestep)
    assert abs(snr_db(expected, got) - torch_snr) < 0.5


CASES: dict[str, dict[str, Any]] = {
    "w8a8": {},
    "w4a6-dilated": {"weight_bits": 4, "activation_bits": 6, "dilation": "symmetric"},
    "w6a2-dilated": {"weight_bits": 6, "activation_bits": 2, "dilation": "asymmetric"},
    "oblong-one-step": {"steps": 1, "shape": (1, 6, 10), "dilation": "none"},
}


@pytest.fixture(scope="module", params=mostly_nightly(CASES, "w4a6-dilated", "oblong-one-step"))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(PlainUNet(), tmp_path_factory.mktemp("case") / "checkpoint", **CASES[request.param])


@pytest.mark.parametrize("target", TARGETS)
def test_a_shallow_network_gives_what_pytorch_gives(case: Checkpoint, target: str, tmp_path: Path) -> None:
    """Padding with zero-points, strides, groups, dilated kernels, no bias, dilation s: 60 dB is what one flipped code would cost."""
    made = export(case.artifact, tmp_path / "bundle", target=target, dtype="fp32", **WHOLE[target])
    for batch in (1, 5):
        x = torch.randn(batch, *case.details.sample_shape, generator=torch.Generator().manual_seed(batch))
        t = torch.linspace(0, 999, batch)
        with torch.no_grad():
            assert snr_db(case.model(x, t), run(made, x, t)) > 60


def test_zero_points_and_dilations_were_among_the_cases(case: Checkpoint) -> None:
    quantizers = case.quantizers
    assert bool((quantizers["grouped.input"].zero_point_table() != 0).any())  # with padding
    dilated = any(bool((q.dilation != 1).any()) for q in quantizers.values())
    rule = (case.artifact.manifest.quantization or {})["dilation"]
    assert rule == "auto" or dilated == (rule != "none")


def test_integer_conditions_reach_the_graph(tmp_path: Path) -> None:
    one_level = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    model = tiny_unet(num_class_embeds=5, add_attention=False, **one_level)
    labels = torch.arange(5)
    made = make_checkpoint(model, tmp_path / "checkpoint", conditions={"class_labels": labels})
    bundle_ = export(made.artifact, tmp_path / "bundle", target="onnxruntime", convolutions="integer")
    (*_, stated) = bundle_.manifest.details["inputs"]
    assert stated == {"name": "class_labels", "dtype": "int64", "shape": ["batch"]}
    x, t = torch.randn(3, *SHAPE), torch.tensor([0.0, 250.0, 750.0])
    with torch.no_grad():
        expected = model(x, t, class_labels=labels[2:]).sample
        other = model(x, t, class_labels=labels[:3]).sample
    got = run(bundle_, x, t, class_labels=labels[2:])
    assert snr_db(expected, got) > 15
    assert snr_db(expected, got) > snr_db(other, got) + 6


@pytest.mark.parametrize("target", mostly_nightly(TARGETS, "onnxruntime"))  # and tests/exporters/test_determinism.py
def test_exporting_twice_gives_the_same_bytes(plain_checkpoint: Checkpoint, target: Any, tmp_path: Path, exported_anew: None) -> None:
    one, two = (export(plain_checkpoint.artifact, tmp_path / n, target=target, **WHOLE[target]) for n in "ab")
    files = sorted(p.name for p in one.path.iterdir())
    assert files == sorted(p.name for p in two.path.iterdir())
    assert all((one.path / f).read_bytes() == (two.path / f).read_bytes() for f in files)


def test_large_tensors_lie_beside_the_graph(plain_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_EXTERNAL_BYTES", 256)
    made = export(plain_checkpoint.artifact, tmp_path / "bundle", target="qdq", dtype="fp32")
    assert sorted(made.manifest.files) == ["model.onnx", "model.onnx.data"]
    raw = onnx.load(made.path / "model.onnx", load_external_data=False)
    external = [{e.key: e.value for e in i.external_data} for i in raw.graph.initializer if i.external_data]
    assert external
    assert {e["location"] for e in external} == {"model.onnx.data"}
    moved = made.path.rename(tmp_path / "moved")
    x, t = torch.randn(2, *SHAPE), torch.tensor([0.0, 750.0])
    with torch.no_grad():
        assert snr_db(plain_checkpoint.model(x, t), run(open_artifact(moved, "bundle"), x, t)) > 60


def test_the_float_export_is_the_source(unet_checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = export(unet_checkpoint.artifact, tmp_path / "float", target="qdq", float=True)
    assert made.manifest.details["float"] is True
    assert not [n for n in graph_of(made).node if "Quantize" in n.op_type]
    reference = unet_checkpoint.reference()
    samples, timestep, _ = reference.flat(slice(None))
    assert snr_db(reference.outputs.flatten(0, 1), run(made, samples, timestep)) > 90


def test_the_float_export_of_a_module_in_memory_is_refused(plain_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="in memory"):
        export(plain_checkpoint.artifact, tmp_path / "float", target="qdq", float=True)


def test_bad_options_are_usage_errors(plain_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="openvino"):
        export(plain_checkpoint.artifact, tmp_path / "b", target="openvino")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="int8"):
        export(plain_checkpoint.artifact, tmp_path / "b", target="qdq", dtype="int8")
    with pytest.raises(UsageError, match="no such path"):
        export(tmp_path / "nowhere", tmp_path / "b", target="qdq")
    with pytest.raises(UsageError, match="already exists"):
        export(plain_checkpoint.artifact, tmp_path, target="qdq")


def test_a_source_that_has_changed_is_refused(attention_pipeline: Path, tmp_path: Path) -> None:
    import shutil

    from diffusers import UNet2DModel

    copy = Path(shutil.copytree(attention_pipeline, tmp_path / "pipeline"))
    made = make_checkpoint(copy, tmp_path / "checkpoint")
    unet = UNet2DModel.from_pretrained(copy / "unet")
    with torch.no_grad():
        unet.conv_in.weight[0, 0, 0, 0] += 1
    unet.save_pretrained(copy / "unet")
    with pytest.raises(ArtifactError, match="weights"):
        export(made.artifact, tmp_path / "float", target="qdq", float=True)
