"""The walk over placeholders: what is shared, what the manifest gets to know, and what is refused."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from dq_deploy.errors import ArtifactError
from dq_deploy.exporters.lower import lower
from dq_deploy.exporters.onnxruntime_target import OnnxRuntimeTarget
from dq_deploy.exporters.skeleton import DOMAIN
from dq_deploy.exporters.tensorrt_target import TensorRTTarget
from dq_deploy.formats import INT8
from dq_deploy.quantization.weights import QuantizedConv2d
from tests.exporters.lower.written import TARGETS, TIMESTEPS, Written, quantizer, random

KERNELS = {"a": 3, "b": 3, "c": 1}


def conv(kernel: int) -> QuantizedConv2d:
    made = QuantizedConv2d(random(4, 4, kernel, kernel), None, INT8, [1, 1], [kernel // 2] * 2, [1, 1], 1)
    made.freeze()
    return made


def value(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def siblings(target: str) -> tuple[ir.Graph, list[dict[str, object]]]:
    """Three convolutions of one quantized input, two of them with padding."""
    x, timestep = value("x", "batch", 4, 8, 8), value("timestep", "batch" if target == "qdq" else 1)
    codes, outputs = value("codes", "batch", 4, 8, 8), {name: value(name, "batch", 4, 8, 8) for name in KERNELS}
    convert = ir.convenience.convert_attributes
    nodes = [ir.Node(DOMAIN, "Quantize", [x], convert({"name": "shared"}), outputs=[codes], name="q")]
    for name, kernel in KERNELS.items():
        geometry = {"strides": [1, 1], "pads": [kernel // 2] * 4, "dilations": [1, 1], "group": 1}
        nodes.append(ir.Node(DOMAIN, "Conv", [codes], convert({"name": name, **geometry}), outputs=[outputs[name]], name=f"{name}:p"))
    graph = ir.Graph([x, timestep], list(outputs.values()), nodes=nodes, opset_imports={"": 21, DOMAIN: 1}, name="graph")
    writer = TARGETS[target](graph, timestep, TIMESTEPS)
    layers = {name: conv(kernel) for name, kernel in KERNELS.items()}
    sites = lower(ir.Model(graph, ir_version=10), writer, layers, {"shared": quantizer(axis=1, channels=4)})
    return graph, sites.quantizers


def test_consumers_with_equal_padding_share_a_quantizer() -> None:
    graph, sites = siblings("qdq")
    ops = [node.op_type for node in graph]
    assert ops.count("QuantizeLinear") == 2
    assert [site["pads"] for site in sites] == [[1, 1, 1, 1], []]
    assert ops.count("Gather") == 2  # scale and zero-point, once for both
    assert not any(node.domain for node in graph)


def test_where_padding_is_no_matter_of_the_quantizer_all_share_it_and_equal_windows_share_patches() -> None:
    graph, sites = siblings("onnxruntime")
    ops = [node.op_type for node in graph]
    assert ops.count("QuantizeLinear") == 1
    assert [(site["name"], site["code_type"], site["pads"]) for site in sites] == [("shared", "UINT8", [])]
    assert ops.count("Pad") == 1
    assert ops.count("MatMulInteger") == 3


def test_a_float_graph_has_no_quantized_layer() -> None:
    x, timestep, y = value("x", "batch", 4), value("timestep", "batch"), value("y", "batch", 4)
    node = ir.Node(DOMAIN, "MatMul", [x, x], ir.convenience.convert_attributes({"name": "a.b"}), outputs=[y], name="p")
    graph = ir.Graph([x, timestep], [y], nodes=[node], opset_imports={"": 21, DOMAIN: 1}, name="graph")
    with pytest.raises(ArtifactError, match=r"layer 'a\.b' is quantized, and a float graph was requested"):
        lower(ir.Model(graph, ir_version=10), None, {"a.b": conv(1)}, {})


@pytest.mark.parametrize(("target", "product"), [("qdq", "qdq_product"), ("onnxruntime", "integer_product")])
def test_what_nothing_is_registered_for_is_named(target: str, product: str) -> None:
    class Unheard(torch.nn.Module):
        bits, symmetric, axis, dilation = 8, False, -1, torch.ones(4)

    with pytest.raises(ArtifactError, match=rf"the exporter has no {product} for Unheard\nregister one: dq_deploy\.exporters\.lower\."):
        Written(target, "Linear", [(5, 4)], (5, 4), layer=Unheard(), quantizers={"layer.input": quantizer(channels=4)})
    with pytest.raises(ArtifactError, match="the exporter has no scale for Unheard"):
        Written(target, "Linear", [(5, 4)], (5, 4), layer=conv(1), quantizers={"layer.input": Unheard()})


def test_targets_decide_what_they_say() -> None:
    assert (TensorRTTarget.pads_first, TensorRTTarget.folds) == (True, False)
    assert (OnnxRuntimeTarget.pads_first, OnnxRuntimeTarget.folds) == (False, True)
