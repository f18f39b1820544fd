"""Attention as the builder makes one kernel of it: 16-bit products, in heads of a size that it has a kernel for.

Measured with TensorRT-RTX 1.7, sm_75 to sm_121 (benchmarks/engines/ATTENTION.md). It fuses softmax(q·kᵀ)·v where

- q, k, v and the probabilities are fp16 or bf16, or all four FP8: INT8 products and fp32 ones become two GEMMs and a written-out score
  matrix;
- q, k and v have heads of one size, of 16 to 256 channels. Zeros for channels change neither product, so smaller heads, and v's or q's
  where they differ, are padded with them;
- between q·kᵀ and the softmax there are scales, masks, biases, bounds and types alone, and behind it a number or a type.

For 7.5 to 8.6 it does not fuse an attention of one head, and on all GPUs one of one head whose channels stand in front of its tokens;
padded by some zeros, whatever its size, it fuses both.

The number of tokens and how many of them are known do not matter. So products that a bundle has in INT8 for CPUs are taken in
float here (``attention`` "auto"); those of an attention that cannot be one kernel stay in INT8.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from ...artifacts.details import BundleDetails
from ...exporters.emitter import Emitter
from ..layer_report.attention import Attention, find_attentions, layer_of
from ..layer_report.kernels import AttentionPlan

_FUSED_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
SMALLEST_HEAD, LARGEST_HEAD = 16, 256
_FUSES_ONE_HEAD = (8, 9)  # the lowest compute capability for which it does
_MULTIPLE = 8  # 16 bytes: what is no multiple the builder copies itself, into more kernels
_TYPE_NAMES = {ir.DataType.FLOAT: "fp32", ir.DataType.INT8: "INT8"}
# From an operand back to the transposition that made it of pixels, if there is one.
_TO_TRANSPOSE = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"})
_BEFORE = frozenset({"Add", "Cast", "Clip", "Div", "Identity", "Max", "Min", "Mul", "Reshape", "Squeeze", "Sub", "Unsqueeze", "Where"})


def fuse_attentions(
    model: ir.Model, details: BundleDetails, capabilities: Sequence[tuple[int, int] | None] = ((8, 9),)
) -> list[AttentionPlan]:
    """Rewrite a bundle's graph in place so that the builder fuses its attentions, and say what is planned for each.

    ``capabilities`` are those that are built for, None a GPU that is known later. A bundle that was exported with ``attention`` "int8"
    keeps its products.
    """
    bundle = _Bundle(model.graph, details, pads_one_head=any(c is None or c < _FUSES_ONE_HEAD for c in capabilities))
    plans = [bundle.fuse(attention) for attention in find_attentions(model.graph)]
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return plans


class _Bundle:
    """A graph, with what its manifest says of quantized values."""

    def __init__(self, graph: ir.Graph, details: BundleDetails, *, pads_one_head: bool) -> None:
        self.pads_one_head = pads_one_head
        self.keeps_int8 = details.attention == "int8"
        self.named: dict[str, ir.Value] = {str(value.name): value for node in graph for value in node.outputs}
        self.named |= {str(value.name): value for value in graph.inputs}
        self.float_of = {site.codes: site.input for site in details.quantizers}
        self.output_of = {layer.name: layer.output for layer in details.layers}
        self.graph = graph

    def fuse(self, attention: Attention) -> AttentionPlan:
        """Rewrite one attention, if it can be fused."""
        products = attention.scores, attention.values
        query, key, probabilities, value = (self._operand(given) for node in products for given in node.inputs)
        shape = tuple(self._result(attention.scores).shape or ())
        one_head = len(shape) == 3 or shape[1:2] == (1,)
        padded = _channels_first(query) or _channels_first(value) or (one_head and self.pads_one_head)
        channels, size = _size(query), _fused_size(query, value, padded=padded)
        reason = self._obstacle(attention, (query, key, probabilities, value), size)
        if reason is None:
            assert size is not None
            self._in_float(attention.scores, (query, key))
            self._in_float(attention.values, (probabilities, value))
            self._pad(attention.scores, 0, -1, size)
            self._pad(attention.scores, 1, -2, size)
            had = self._pad(attention.values, 1, -1, size)
            if had != size:
                self._cut(attention.values, had)
        return attention.plan(shape, head_size=channels, reason=reason)

    def _obstacle(self, attention: Attention, operands: Sequence[ir.Value | None], size: int | None) -> str | None:
        """Why the builder would not make one kernel of it, in words; None where it will."""
        if self.keeps_int8 and any(layer_of(node) in self.output_of for node in (attention.scores, attention.values)):
            return "exported with --attention int8"
        if any(value is None for value in operands):
            return "an operand is quantized in another form than INT8"
        kinds = [value.dtype for value in operands if value is not None]
        if wide := [kind for kind in kinds if kind not in _FUSED_TYPES]:
            return f"an operand is {_TYPE_NAMES.get(wide[0] or ir.DataType.UNDEFINED, str(wide[0]))}, and only 16-bit types are fused"
        if size is None:
            return "its head size is not known when the engine is built"
        if size > LARGEST_HEAD:
            return f"its heads need {size} channels with padding, and those of up to {LARGEST_HEAD} are fused"
        if foreign := _foreign(attention, operands[2]):
            return f"it has {foreign}"
        if not all(_is_cast(node, kinds[0]) for node in self._readers(attention.scores)):
            return "its scores stay in fp32, as fp16 cannot hold them"
        return None

    def _operand(self, value: ir.Value | None) -> ir.Value | None:
        """What was quantized to INT8; a float as it is; None for another quantized form."""
        node = value.producer() if value is not None else None
        if value is None or node is None or node.op_type != "DequantizeLinear":
            return value
        codes = node.inputs[0]
        if codes is None or codes.dtype not in (ir.DataType.INT8, None):
            return None
        return self.named.get(self.float_of.get(str(codes.name), ""))

    def _result(self, product: ir.Node) -> ir.Value:
        """A product's value after its scales, which is the MatMul's own where it is a float one."""
        return self.named.get(self.output_of.get(layer_of(product), ""), product.outputs[0])

    def _readers(self, product: ir.Node) -> list[ir.Node]:
        result = self._result(product)
        return [node for node, _ in result.uses()] if result is not product.outputs[0] else []

    def _in_float(self, product: ir.Node, operands: Sequence[ir.Value | None]) -> None:
        """Let a product read the floats, and everything that reads its rescaled result read its own."""
        quantized, made = self._result(product), product.outputs[0]
        for index, value in enumerate(operands):
            product.replace_input_with(index, value)
        if quantized is made:
            return
        kind = operands[0].dtype if operands[0] is not None else None
        assert kind is not None
        made.type, made.shape = ir.TensorType(kind), quantized.shape
        for node in self._readers(product):
            if _is_cast(node, kind):
                ir.convenience.replace_all_uses_with(node.outputs[0], made)
        if readers := [(node, index) for node, index in quantized.uses() if not _is_cast(node, kind)]:
            wide = self._behind(product).op("Cast", [made], name="to_float", to=ir.DataType.FLOAT.value)
            for node, index in readers:
                node.replace_input_with(index, wide)

    def _pad(self, product: ir.Node, index: int, axis: int, size: int) -> int:
        """Give an operand ``size`` channels on its ``axis``, zeros behind those that it has; how many it had."""
        value = product.inputs[index]
        assert value is not None
        assert value.dtype is not None
        assert value.shape is not None
        had = value.shape[axis]
        assert isinstance(had, int)
        if had != size:
            amounts = np.zeros(2 * len(value.shape), np.int64)
            amounts[axis] = size - had  # the second half is what comes behind
            emit = Emitter(self.graph, layer_of(product), product, fp32=False)
            pads = emit.constant(f"dq_deploy.pads_{'_'.join(map(str, amounts))}", amounts)
            product.replace_input_with(index, emit.op("Pad", [value, pads], name=f"pad_{index}", dtype=value.dtype))
        return had

    def _cut(self, product: ir.Node, size: int) -> None:
        """Leave the first ``size`` channels of a product's result."""
        made = product.outputs[0]
        assert made.dtype is not None
        readers, emit = list(made.uses()), self._behind(product)
        begin, end, last = (emit.constant(f"dq_deploy.number_{n}", np.array([n], np.int64)) for n in (0, size, -1))
        cut = emit.op("Slice", [made, begin, end, last], name="cut", dtype=made.dtype)
        for node, index in readers:
            node.replace_input_with(index, cut)

    def _behind(self, product: ir.Node) -> Emitter:
        return Emitter(self.graph, layer_of(product), after=product, fp32=False)


def _is_cast(node: ir.Node, kind: ir.DataType | None) -> bool:
    return node.op_type == "Cast" and node.outputs[0].dtype == kind


def _fused_size(query: ir.Value | None, value: ir.Value | None, *, padded: bool) -> int | None:
    """The size that an attention's heads are padded to, in any case where it must be ``padded``; None where it is not known."""
    sizes = _size(query), _size(value)
    if sizes[0] is None or sizes[1] is None:
        return None
    return padded_head(max(sizes[0], sizes[1]), always=padded)


def padded_head(channels: int, *, always: bool) -> int:
    """The size that heads of so many channels are padded to; ``always``: by one channel at least."""
    least = channels + 1 if always else channels
    return max(SMALLEST_HEAD, -(-least // _MULTIPLE) * _MULTIPLE)


def _channels_first(value: ir.Value | None) -> bool:
    """Whether an operand's channels were made its last dimension by a transposition."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm", ())
            return bool(order) and order[-1] != len(order) - 1
        if node.op_type not in _TO_TRANSPOSE:
            return False
        value = next((given for given in node.inputs if given is not None and given.const_value is None), None)
    return False


def _size(value: ir.Value | None) -> int | None:
    """Channels of an operand [..., tokens, channels]."""
    shape = value.shape if value is not None else None
    size = shape[-1] if shape is not None and len(shape) else None
    return size if isinstance(size, int) else None


def _foreign(attention: Attention, probabilities: ir.Value | None) -> str | None:
    """What lies between the products and keeps them apart, in words."""
    if other := next((node for node in attention.before if node.op_type not in _BEFORE), None):
        return f"a {other.op_type} in front of its softmax"
    value = probabilities
    while value is not attention.softmax.outputs[0]:
        node = value.producer() if value is not None else None
        if node is None or not _by_a_number(node):
            return f"a {node.op_type if node else 'gap'} behind its softmax"
        value = node.inputs[0]
    return None


def _by_a_number(node: ir.Node) -> bool:
    """Whether a node changes a type, or multiplies by one number."""
    if node.op_type in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
        return True
    factor = node.inputs[1].const_value if node.op_type in ("Mul", "Div") and node.inputs[1] is not None else None
    return factor is not None and factor.size == 1
