"""The kernels of an engine, as its room reads them from a builder's log or a compiled model, and what it planned for attention.

A layer report is made from them.
"""

from __future__ import annotations

import re

from ...artifacts.records import Record
from ..descriptors.descriptor import FLOATS

# A kernel whose type says that it multiplies matrices: `correlation` is RTX's word for a convolution.
_CONTRACTION_TYPE = re.compile(r"correlation|conv|gemm|matmul|matrix|mha|attention|fullyconnected", re.IGNORECASE)
# Fused kernels say so in their name only: `__myl_CastMulCastFc_…`, `_gemm_mha_v2_…`. "Conc" is a concatenation.
_CONTRACTION_NAME = re.compile(r"Fc(?=[A-Z_])|Gemm|Conv(?=[A-Z_])|_gemm|mha")
# A fusion that casts before it multiplies may read integers and multiply floats.
_CAST_FIRST = re.compile(r"Cast.*(Fc|Gemm|Conv|_gemm|mha)")
# The types of both operands of a product by its format: an INT8 one takes INT4 weights, which are widened; FP4 has scales in FP8.
_OPERANDS = {"fp4": ("fp4",), "int8": ("int8", "int4"), "fp8": ("fp8",)}
BY_TYPE, BY_NAME, NOTHING = 0, 1, 2


class Tensor(Record):
    """An operand of a kernel. ``shape`` has -1 for dimensions that are known at run time only."""

    dtype: str
    shape: tuple[int, ...]


class Kernel(Record):
    """One kernel of an engine. ``constants`` are weights and scales, ``nodes`` the ONNX nodes that went into it.

    ``precision`` is that of its product where the engine states it; None where it multiplies nothing, or where the operands must tell.
    ``profile`` is the number of the optimization profile that it belongs to.
    """

    name: str
    type: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]
    precision: str | None = None
    profile: int = 0


class LayerDump(Record):
    """``kernels`` in order of execution, ``operators`` of the ONNX nodes by name, and the weights' size.

    ``activation_bytes`` is what a run needs for activations at the largest shapes, where the builder says it.
    """

    kernels: tuple[Kernel, ...]
    operators: dict[str, str]
    weights_bytes: int
    activation_bytes: int | None = None

    def of_profile(self, number: int) -> LayerDump:
        """With the kernels of one optimization profile."""
        return self.model_copy(update={"kernels": tuple(kernel for kernel in self.kernels if kernel.profile == number)})


class AttentionPlan(Record):
    """An attention, and what an engine is to make of it.

    ``scores`` and ``values`` are the layers of q·kᵀ and P·v, ``nodes`` their products in the graph. ``tokens`` query ``keys``, in ``heads``
    of ``head_size`` channels; None where a size is known at run time only. ``fused`` says that it is planned as one kernel, ``reason`` why
    not.
    """

    scores: str
    values: str
    nodes: tuple[str, str]
    tokens: int | None
    keys: int | None
    heads: int | None
    head_size: int | None
    fused: bool
    reason: str | None = None


def datatypes(kernel: Kernel) -> str:
    """The precision of a kernel that multiplies matrices, and "inputs -> outputs" of any other."""
    if rank(kernel) <= BY_NAME:
        return product_format(kernel)
    sides = ("+".join(sorted({tensor.dtype for tensor in side})) or "none" for side in (kernel.inputs or kernel.constants, kernel.outputs))
    return " -> ".join(sides)


def rank(kernel: Kernel) -> int:
    """What says that it multiplies matrices: its type, or its engine (``BY_TYPE``), its name (a fusion: ``BY_NAME``), or nothing."""
    if kernel.precision or _CONTRACTION_TYPE.search(kernel.type):
        return BY_TYPE
    return BY_NAME if _CONTRACTION_NAME.search(kernel.name) else NOTHING


def casts_first(kernel: Kernel) -> bool:
    """Whether it is a fusion that casts its operands before it multiplies them."""
    return _CAST_FIRST.search(kernel.name) is not None


def product_format(kernel: Kernel) -> str:
    """The format of a kernel's product: a quantized one only when both operands have it, and keep it up to the product."""
    inputs = [tensor.dtype for tensor in kernel.inputs]
    operands = inputs + [tensor.dtype for tensor in kernel.constants]
    if kernel.precision:
        return kernel.precision
    said = rank(kernel)
    if said == BY_TYPE or (said == BY_NAME and not casts_first(kernel)):
        for format_, types in _OPERANDS.items():
            if format_ in inputs and sum(dtype in types for dtype in operands) >= 2:
                return format_
    everything = operands + [tensor.dtype for tensor in kernel.outputs]
    return next((dtype for dtype in everything if dtype in FLOATS), "unknown")
