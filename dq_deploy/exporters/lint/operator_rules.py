"""Rules about operators that an engine does not have at all."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .rule import Hit
from .view import View

# What TensorRT-RTX 1.7's parser answers False to, asked with supports_operator for every operator of onnx 1.23; those of training and of
# strings, which no denoiser has, are left out.
NOT_IN_TENSORRT = frozenset(
    {
        "AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im",
        "Compress", "ConcatFromSequence", "ConvInteger", "CumProd", "DFT", "DeformConv", "Det", "DynamicQuantizeLinear", "MatMulInteger",
        "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv",
        "QLinearMatMul", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
        "SequenceMap", "SplitToSequence", "SwiGLU", "Unique",
    }
)  # fmt: skip


def not_in_tensorrt(view: View) -> Iterator[Hit]:
    """TensorRT's parser refuses the graph: it has no such operator.

    Built: pattern ``fourier-transform``, as FreeU's filter exports.
    """
    for node in view.nodes:
        if not node.domain and node.op_type in NOT_IN_TENSORRT and not view.is_constant(node.outputs[0]):
            yield Hit(node, f"TensorRT has no operator {node.op_type}", {"operator": node.op_type})


def boolean_where(view: View) -> Iterator[Hit]:
    """ONNX Runtime refuses the session: its CPU kernels of Where take no booleans ("Could not find an implementation").

    Opened: pattern ``boolean-where``.
    """
    for node in view.nodes:
        if not node.domain and node.op_type == "Where" and view.dtype(node.inputs[1]) == ir.DataType.BOOL:
            yield Hit(node, "Where chooses between booleans")
