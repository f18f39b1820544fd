"""Reads the runtime graph of a model that OpenVINO has compiled: its kernels, in the terms of the layer report.

Each node of ``CompiledModel.get_runtime_model()`` is a primitive, with its type, the kernel that was chosen for it and the names of the
layers that went into it. OpenVINO renames what it fuses: ``q/MatMul`` is found as ``q/MatMul/DequantizationMultiply`` where an INT8 kernel
rescales, and as ``q/Add`` where a float one adds the bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..layer_report import CONTRACTIONS
from ..layer_report.kernels import Kernel, LayerDump, Tensor
from .layouts import only_holds

PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
# A fusion (of attention, say) multiplies matrices only if a product's name is among those of its layers.
FUSIONS = ("Subgraph", "ScaledDotProductAttention")
# What takes no time of its own at a run.
_NO_KERNEL = ("Const", "Input", "Output", "Parameter", "Result")
_DTYPES = {
    "f64": "fp64", "f32": "fp32", "f16": "fp16", "bf16": "bf16", "i64": "int64", "i32": "int32", "i8": "int8", "u8": "uint8",
    "i4": "int4", "u4": "uint4", "boolean": "bool",
}  # fmt: skip
_BITS = {"f64": 64, "i64": 64, "f32": 32, "i32": 32, "u32": 32, "f16": 16, "bf16": 16, "i8": 8, "u8": 8, "boolean": 8, "i4": 4, "u4": 4}
# How far behind a product the layer may be that OpenVINO has fused it into and named it after: a scale, a bias and an activation.
_FUSED_BEHIND = 3


def product_precision(primitive: str) -> str:
    """Precision of a product from its primitive's name: "brgconv_avx512_I8" → "int8", "gemm_mlas_f32" → "fp32"."""
    computed = primitive.rpartition("_")[2].lower()
    return "int8" if computed in ("i8", "u8") else _DTYPES.get(computed, computed)


def runtime_dump(compiled: Any, graph: Any) -> LayerDump:
    """The kernels of a compiled model. ``graph`` is the ONNX graph that it was made from: names and operators of the nodes.

    ``weights_bytes`` are all constants that the compiled model holds, in the types in which it holds them.
    """
    nodes = sorted(map(_Node, compiled.get_runtime_model().get_ops()), key=lambda node: node.order)
    constant = _constant(nodes)
    operators = {node.name: node.op_type for node in graph.node}
    kernels = [_kernel(node, constant, operators) for node in nodes if node.name not in constant and node.kind not in _NO_KERNEL]
    return LayerDump(
        kernels=tuple(_with_fused_products(kernels, graph)),
        operators=operators,
        weights_bytes=sum(_constant_bytes(node) for node in nodes if node.kind == "Const"),
    )


class _Node:
    """A node of the runtime graph, read once."""

    def __init__(self, op: Any) -> None:
        info = {key: str(value.value) for key, value in op.get_rt_info().items()}
        self.name: str = op.get_friendly_name()
        self.kind = info["layerType"]
        self.primitive = info["primitiveType"]
        self.order = int(info["execOrder"])
        # A product of several layers (rewrites.products) is called by all their names.
        self.layers = [self.name, *filter(None, f"{self.name},{info['originalLayersNames']}".split(","))]
        sources = [port.get_source_output() for port in op.inputs()]
        self.sources: list[str] = [source.get_node().get_friendly_name() for source in sources]
        self.inputs = [_port(source) for source in sources]
        self.outputs = [_port(output) for output in op.outputs()]


def _port(port: Any) -> tuple[str, tuple[int, ...]]:
    shape = tuple(-1 if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    return port.get_element_type().get_type_name(), shape


def _constant(nodes: Sequence[_Node]) -> set[str]:
    """Names of the nodes that depend on constants alone: they are computed once, when the model is compiled."""
    constant: set[str] = set()
    for node in nodes:
        if node.kind == "Const" or (node.sources and set(node.sources) <= constant):
            constant.add(node.name)
    return constant


def _kernel(node: _Node, constant: set[str], operators: Mapping[str, str]) -> Kernel:
    named = list(dict.fromkeys(found for layer in node.layers if (found := _onnx_node(layer, operators))))
    fused = node.kind in FUSIONS and any(operators[name] in CONTRACTIONS for name in named)
    multiplies = fused or (node.kind in PRODUCTS and not only_holds(node.name))
    return Kernel(
        name=node.name,
        type=node.kind,
        inputs=_tensors(value for value, source in zip(node.inputs, node.sources, strict=True) if source not in constant),
        constants=_tensors(value for value, source in zip(node.inputs, node.sources, strict=True) if source in constant),
        outputs=_tensors(node.outputs),
        nodes=tuple(named),
        precision=product_precision(node.primitive) if multiplies else None,
    )


def _onnx_node(layer: str, operators: Mapping[str, str]) -> str | None:
    """The ONNX node that a layer's name begins with: OpenVINO appends the steps of its own."""
    while layer and layer not in operators:
        layer = layer.rpartition("/")[0]
    return layer or None


def _tensors(values: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(dtype=_DTYPES.get(dtype, dtype), shape=shape) for dtype, shape in values if dtype != "dynamic")


def _constant_bytes(node: _Node) -> int:
    dtype, shape = node.outputs[0]
    size = 1
    for length in shape:
        size *= length
    return -(-size * _BITS.get(dtype, 0) // 8)


def _with_fused_products(kernels: Sequence[Kernel], graph: Any) -> list[Kernel]:
    """Kernels that were named after a layer behind their product get the product's node too."""
    named = {name for kernel in kernels for name in kernel.nodes if kernel.precision}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    owner = {name: kernel.name for kernel in kernels if kernel.precision for name in kernel.nodes}
    more: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type in CONTRACTIONS and node.name not in named and (kernel := _kernel_behind(node, readers, owner)):
            more.setdefault(kernel, []).append(node.name)
    return [kernel.model_copy(update={"nodes": (*kernel.nodes, *more.get(kernel.name, ()))}) for kernel in kernels]


def _kernel_behind(product: Any, readers: Mapping[str, Sequence[Any]], owner: Mapping[str, str]) -> str | None:
    front = [product]
    for _ in range(_FUSED_BEHIND):
        front = [reader for node in front for value in node.output for reader in readers.get(value, ())]
        front = [node for node in front if node.op_type not in CONTRACTIONS]
        if found := next((owner[node.name] for node in front if node.name in owner), None):
            return found
    return None
