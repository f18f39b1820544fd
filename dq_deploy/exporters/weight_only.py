"""Layers whose weights alone are integers: DequantizeLinear(int4 or int8) → MatMul or Conv, all in the type of what is not quantized.

Linear layers with a scale for each block of input channels are blocked DequantizeLinears (opset 21); TensorRT unpacks them inside the GEMM,
ONNX Runtime makes MatMulNBits of them. A convolution's weight is unpacked in front of it (docs/engine-patterns.md): for ONNX Runtime, which
would do that on every run, by a Cast and a Mul, which it folds when it loads the graph.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..quantization.weight_only import WeightOnly, WeightOnlyLinear
from .emitter import Emitter, attributes
from .weights import container, storage_of


def weight_only_product(graph: ir.Graph, layer: WeightOnly, node: ir.Node, name: str, *, int4: bool, folds: bool) -> ir.Value:
    """Emit the layer in the place of its placeholder and give its output."""
    emit = Emitter(graph, name, node, fp32=False)
    (x,) = node.inputs
    assert x is not None
    output = f"{name}/output"
    weight = _weight(emit, layer, name, int4=int4, folds=folds)
    if isinstance(layer, WeightOnlyLinear):
        y = emit.op("MatMul", [x, weight], output=output if layer.bias is None else None)
        return y if layer.bias is None else emit.op("Add", [y, _bias(emit, layer, name)], output=output)
    options = {k: v for k, v in attributes(node).items() if k != "name"}
    return emit.op("Conv", [x, weight] + ([] if layer.bias is None else [_bias(emit, layer, name)]), output=output, **options)


def _weight(emit: Emitter, layer: WeightOnly, name: str, *, int4: bool, folds: bool) -> ir.Value:
    """The weight [C, O] of a linear layer or [O, C, kh, kw] of a convolution."""
    assert layer.frozen is not None
    array, scale = layer.frozen[0].numpy(), layer.frozen[1].numpy()
    options: dict[str, Any] = {"axis": 0}
    if isinstance(layer, WeightOnlyLinear):
        array, scale = array.T, scale.T
        options = {"axis": 0, "block_size": layer.block} if layer.block else {"axis": 1}
        scale = scale if layer.block else scale[0]
    stored = array.astype(container(storage_of(layer.bits, int4=int4)).numpy())
    codes = emit.constant(f"{name}.weight.codes", stored)
    if folds and not isinstance(layer, WeightOnlyLinear):
        scales = emit.constant(f"{name}.weight.scale", layer.unpacking().detach().numpy())
        floats = emit.op("Cast", [codes], name="UnpackWeight", to=ir.DataType.FLOAT.value)
        return emit.op("Mul", [floats, scales], name="ScaleWeight")
    inputs = [codes, emit.constant(f"{name}.weight.scale", scale)]
    return emit.op("DequantizeLinear", inputs, name="DequantizeWeight", **options)


def _bias(emit: Emitter, layer: WeightOnly, name: str) -> ir.Value:
    assert layer.bias is not None
    return emit.constant(f"{name}.bias", layer.bias.detach().numpy())
