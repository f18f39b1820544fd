"""The catalogue: every pattern that was ever asked of the engines, and what the lint must say of it.

What the engines do is not written here: ``python -m benchmarks.patterns`` finds out and records it in ``results.json``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir

from . import activations as a
from . import float4 as f4
from . import float8 as f
from . import gathered as g
from . import weights as w
from .engines import COMPUTE_CAPABILITY, Capability
from .sketch import FLOAT, FLOAT16, INT8


@dataclass(frozen=True)
class Pattern:
    """One graph. ``lint`` are the rules that fire for its target; ``float_wanted`` where activations are float by design.

    ``valid`` is off where onnx.checker refuses the graph, which is then the point of it.
    """

    name: str
    title: str
    build: Callable[[], onnx.ModelProto]
    lint: tuple[str, ...] = ()
    target: str = "qdq"
    float_wanted: bool = False
    valid: bool = True
    capability: Capability = COMPUTE_CAPABILITY


_GOOD = (
    Pattern("conv-static", "Conv, constant Q/DQ scales", a.conv_static),
    Pattern("matmul-static", "MatMul, constant Q/DQ scales", a.matmul_static),
    Pattern("conv-per-timestep", "Conv, Q/DQ scale 1; times 1/s_t before, times s_t after", a.conv_per_timestep),
    Pattern("conv-dilated", "the same with a factor for each channel in 1/s_t", partial(a.conv_per_timestep, dilated=True)),
    Pattern("matmul-per-timestep", "MatMul, Q/DQ scale 1; times 1/s_t before, times s_t after", a.matmul_per_timestep),
    Pattern("conv-asymmetric", "Conv; pad, round and add z_t before Q/DQ(1), correct after, fp16 around", a.conv_asymmetric),
    Pattern("conv-narrow", "Conv, 6-bit codes: clip before Q/DQ(1)", a.conv_narrow),
    Pattern("matmul-shared-quantizer", "three MatMuls on one per-timestep quantizer", a.shared_quantizer),
    Pattern("attention-products", "q·kᵀ and softmax·v, all operands per timestep", a.attention_products),
    Pattern("matmul-dynamic", "MatMul; a scale for each token, computed from it, outside of Q/DQ(1)", a.matmul_dynamic),
    Pattern("scale-folded", "Conv, constant scale behind a Cast", a.conv_folded_scale),
    Pattern("scale-fp16", "MatMul, Q/DQ in fp16, scale cast from fp32", partial(a.half_scale, 0.05)),
    Pattern(
        "codes-by-attribute", "MatMul, Q without zero-point, output_dtype int8", partial(a.matmul_no_zero_point, output_dtype=INT8.value)
    ),
    Pattern("conv-padded", "Conv, Q/DQ → Pad → Conv", partial(a.conv_through, "Pad", computed=False)),
    Pattern("conv-concatenated", "Conv, two Q/DQ → Concat → Conv", partial(a.conv_through, "Concat", computed=False)),
    Pattern("conv-computed-quantize", "Conv, the scale of Q alone computed", a.conv_computed_quantize),
    Pattern("conv-computed-output", "Conv, constant Q/DQ before it, computed Q/DQ behind it", a.conv_computed_output),
    Pattern("conv-weight-quantized", "Conv, a float weight through Q/DQ", w.conv_weight_quantized),
    *(Pattern(f"opset-{n}", f"Conv, constant Q/DQ scales, opset {n}", partial(a.conv_static, n)) for n in (13, 19, 23, 25, 26)),
)
_COMPUTED = (
    Pattern("conv-computed-scale", "Conv, Q/DQ scale computed", a.conv_computed_scale, ("computed-scale-conv",)),
    Pattern("conv-computed-weight-scale", "Conv, the weight's DQ scale computed", a.conv_computed_weight_scale, ("computed-scale-conv",)),
    Pattern(
        "conv-computed-scale-transposed",
        "the same, Q/DQ → Transpose → Conv",
        partial(a.conv_through, "Transpose", computed=True, perm=[0, 1, 3, 2]),
        ("computed-scale-conv",),
    ),
    Pattern(
        "conv-computed-scale-padded", "the same, Q/DQ → Pad → Conv", partial(a.conv_through, "Pad", computed=True), ("computed-scale-conv",)
    ),
    Pattern(
        "conv-computed-scale-pooled",
        "the same, Q/DQ → MaxPool → Conv",
        partial(a.conv_through, "MaxPool", computed=True, kernel_shape=[2, 2]),
        ("computed-scale-conv",),
    ),
    Pattern(
        "conv-computed-scale-concatenated",
        "the same, two Q/DQ → Concat → Conv",
        partial(a.conv_through, "Concat", computed=True),
        ("computed-scale-conv",),
    ),
    Pattern(
        "conv-transpose-computed-scale", "ConvTranspose, Q/DQ scale computed", a.conv_transpose_computed_scale, ("computed-scale-matmul",)
    ),
    Pattern(
        "matmul-computed-weight-scale", "MatMul, the weight's DQ scale computed", a.matmul_computed_weight_scale, ("computed-scale-matmul",)
    ),
    Pattern(
        "conv-activation-changed",
        "Conv, Q/DQ → Relu → Conv: what reaches it is no longer quantized",
        partial(a.conv_through, "Relu", computed=False),
        ("float-activation",),
    ),
    Pattern("matmul-computed-scale", "MatMul, Q/DQ scale computed", a.matmul_computed_scale, ("computed-scale-matmul",)),
    Pattern("gemm-computed-scale", "Gemm, Q/DQ scale computed", a.gemm_computed_scale, ("computed-scale-matmul",)),
    Pattern(
        "conv-per-channel-activation", "Conv, activation scale for each channel", a.conv_per_channel_activation, ("per-channel-activation",)
    ),
    Pattern(
        "matmul-per-token-activation", "MatMul, activation scale for each token", a.matmul_per_token_activation, ("per-channel-activation",)
    ),
)
_VALUES = (
    Pattern("zero-point", "MatMul, zero-point 3", partial(a.matmul_static, zero_point=3), ("zero-point",)),
    Pattern(
        "zero-point-uint8",
        "MatMul, uint8, zero-point 128",
        partial(a.matmul_static, zero_point=128, dtype=np.uint8),
        ("zero-point", "code-type"),
    ),
    Pattern("codes-uint8", "MatMul, uint8, zero-point 0", partial(a.matmul_static, dtype=np.uint8), ("code-type",)),
    Pattern("codes-uint8-by-default", "MatMul, Q without zero-point", a.matmul_no_zero_point, ("code-type",)),
    Pattern("codes-int16", "MatMul, int16 activations", partial(a.matmul_static, dtype=np.int16), ("code-type",)),
    Pattern("codes-uint8-weight", "MatMul, uint8 weights", partial(w.weight_codes, ir.DataType.UINT8), ("code-type",)),
    Pattern("codes-uint4-weight", "MatMul, uint4 weights", partial(w.weight_codes, ir.DataType.UINT4), ("code-type",)),
    Pattern("scale-zero", "MatMul, scale 0", partial(a.matmul_static, scale=0.0), ("zero-scale",)),
    Pattern("scale-negative", "MatMul, scale below 0", partial(a.matmul_static, scale=-0.05), ("negative-scale",)),
    Pattern("scale-nan", "MatMul, scale NaN", partial(a.matmul_static, scale=float("nan")), ("non-finite-scale",)),
    Pattern("scale-infinite", "MatMul, scale infinite", partial(a.matmul_static, scale=float("inf")), ("non-finite-scale",)),
    Pattern("scale-subnormal", "MatMul, scale 1e-40", partial(a.matmul_static, scale=1e-40), ("subnormal-scale",)),
    Pattern("scale-subnormal-fp16", "MatMul, scale 1e-6 cast to fp16", partial(a.half_scale, 1e-6), ("subnormal-scale",)),
    Pattern("scale-zero-fp16", "MatMul, scale 1e-9 cast to fp16, where it is 0", partial(a.half_scale, 1e-9), ("zero-scale",)),
    Pattern("table-zero", "Conv per timestep, a row of the table 0", partial(a.table_scale, 0.0), ("zero-scale",)),
    Pattern("table-nan", "Conv per timestep, a row of the table NaN", partial(a.table_scale, float("nan")), ("non-finite-scale",)),
)
_WEIGHTS = (
    Pattern("matmul-int4-int8", "MatMul, INT4 weight per channel, INT8 activation", partial(w.matmul_int4_per_channel, int8=True)),
    Pattern(
        "matmul-int4-fp16",
        "MatMul, INT4 weight per channel, fp16 activation",
        partial(w.matmul_int4_per_channel, int8=False),
        float_wanted=True,
    ),
    Pattern(
        "matmul-int4-blocks-fp16",
        "MatMul, INT4 weight in blocks of 64, fp16 activation",
        partial(w.matmul_int4_blocks, int8=False),
        float_wanted=True,
    ),
    Pattern(
        "matmul-int4-blocks-int8",
        "MatMul, INT4 weight in blocks of 64, INT8 activation",
        partial(w.matmul_int4_blocks, int8=True),
        ("block-wise-int8-activation",),
    ),
    Pattern(
        "matmul-int8-blocks-int8",
        "MatMul, INT8 weight in blocks of 64, INT8 activation",
        w.matmul_int8_blocks,
        ("block-wise-int8-activation",),
    ),
    Pattern(
        "matmul-int4-per-tensor-int8",
        "MatMul, INT4 weight with one scale, INT8 activation",
        w.matmul_int4_per_tensor,
        ("int4-per-tensor-int8-activation",),
    ),
    Pattern(
        "conv-int4-fp16", "Conv, INT4 weight per channel, fp16 activation", partial(w.conv_int4_per_channel, int8=False), float_wanted=True
    ),
    Pattern(
        "conv-int4-int8",
        "Conv, INT4 weight per channel, INT8 activation",
        partial(w.conv_int4_per_channel, int8=True),
        ("int4-conv-int8-activation",),
    ),
    Pattern(
        "conv-int4-requantized",
        "Conv, INT4 DQ(1) → Cast fp32 → Cast fp16 → Q(int8) → DQ, INT8 activation",
        partial(w.conv_int4_requantized, FLOAT, FLOAT16),
    ),
    Pattern("conv-int4-requantized-one-cast", "the same with the Cast to fp16 alone", partial(w.conv_int4_requantized, FLOAT16)),
    Pattern("conv-int4-requantized-bf16", "the same with a Cast to bf16 alone", partial(w.conv_int4_requantized, ir.DataType.BFLOAT16)),
    Pattern(
        "conv-int4-requantized-fp32-cast",
        "the same with the Cast to fp32 alone",
        partial(w.conv_int4_requantized, FLOAT),
        ("int4-requantize-uncast",),
    ),
    Pattern("conv-int4-requantized-uncast", "the same with no Cast", w.conv_int4_requantized, ("int4-requantize-uncast",)),
    Pattern(
        "matmul-int4-requantized",
        "MatMul, INT4 DQ(1) → Cast fp32 → Cast fp16 → Q(int8) → DQ, INT8 activation",
        partial(w.matmul_int4_requantized, FLOAT, FLOAT16),
        ("int4-requantize-matmul",),
    ),
    Pattern(
        "matmul-int4-requantized-uncast",
        "the same with no Cast",
        w.matmul_int4_requantized,
        ("int4-requantize-uncast", "int4-requantize-matmul"),
    ),
    Pattern("matmul-int4-together", "two MatMuls, their INT4 codes as one → numbers → Add 0 → Q(1) → Split → DQ", w.int4_together),
    Pattern(
        "matmul-planes-together",
        "two MatMuls, 3-bit codes as bit planes → rows of tables → Sum → Q(1) → Split → DQ",
        partial(w.planes_together, 3),
    ),
    Pattern("matmul-int4-two-levels", "MatMul, INT4 weight → DQ(integers for blocks) → Add 0 → Q(1) → DQ per channel", w.matmul_two_levels),
    Pattern("matmul-int4-cast", "MatMul, INT4 weight → Cast int8 → DQ", w.matmul_int4_cast, ("int4-cast",)),
    Pattern(
        "conv-weight-scale-axis",
        "Conv, weight scales along the input channels",
        partial(w.weight_scale_axis, "Conv"),
        ("weight-scale-axis",),
    ),
    Pattern(
        "matmul-weight-scale-axis",
        "MatMul, weight scales along the input channels",
        partial(w.weight_scale_axis, "MatMul"),
        ("weight-scale-axis",),
    ),
    Pattern(
        "matmul-int4-opset-20",
        "MatMul, INT4 weight, opset 20",
        partial(w.matmul_int4_per_channel, int8=True, opset=20),
        ("int4-opset",),
        valid=False,
    ),
    Pattern("fourier-transform", "DFT", a.fourier_transform, ("no-such-operator",)),
    Pattern("opset-10", "Conv, per-channel DQ, opset 10", partial(a.conv_static, 10), ("invalid-onnx",), valid=False),
)
_CODEBOOKS = (
    Pattern("conv-codebook", "Conv, weight of codewords: indices int8 → numbers → Gather → Q(1) → DQ", partial(w.codebook, "Conv")),
    Pattern("conv-codebook-two-books", "the same, the sum of two books", partial(w.codebook, "Conv", 2)),
    Pattern("matmul-codebook", "MatMul, weight of codewords, transposed between Q and DQ", partial(w.codebook, "MatMul")),
    Pattern("matmul-codebook-two-books", "the same, the sum of two books", partial(w.codebook, "MatMul", 2)),
    Pattern(
        "matmul-codebook-unsigned",
        "MatMul, indices uint8 that are cast",
        partial(w.codebook, "MatMul", unsigned=True),
        ("codebook-unsigned",),
    ),
    Pattern(
        "matmul-codebook-before", "MatMul, transposed before Q", partial(w.codebook, "MatMul", transpose="before"), ("codebook-moved",)
    ),
    Pattern("matmul-codebook-after", "MatMul, transposed after DQ", partial(w.codebook, "MatMul", transpose="after"), ("codebook-moved",)),
)
_FLOAT8 = (
    Pattern("matmul-fp8", "MatMul, FP8 codes, constant scales", f.matmul_fp8),
    Pattern("matmul-fp8-per-timestep", "the same, Q/DQ scale 1; times 1/s_t before, times s_t after", f.matmul_fp8_per_timestep),
    Pattern("conv-fp8-per-timestep", "Conv, the same", f.conv_fp8_per_timestep),
    Pattern("matmul-int4-fp8", "MatMul, INT4 weight → DQ(1) → Add 0 → Q(FP8) → DQ per channel, FP8 activation", f.matmul_int4_fp8),
    Pattern("conv-int4-fp8", "Conv, the same", f.conv_int4_fp8),
    Pattern("matmul-fp8-half-scale", "MatMul, FP8 codes, all scales fp16", f.matmul_fp8_half_scale, ("fp8-half-scale",)),
    Pattern("matmul-fp8-unsaturated", "MatMul, FP8 codes, Q with saturate 0", partial(f.matmul_fp8, saturate=0), ("fp8-unsaturated",)),
    Pattern("matmul-fp8-opset-18", "MatMul, FP8 codes, opset 18", partial(f.matmul_fp8, opset=18), ("fp8-opset",), valid=False),
)
_FLOAT4 = tuple(
    Pattern(name, title, build, lint, valid=valid, capability=(12, 0))
    for name, title, build, lint, valid in (
        ("matmul-fp4", "MatMul, FP4 codes in blocks of 16, the activation's made by TensorRT's operator", f4.matmul_fp4, (), True),
        ("matmul-fp4-per-timestep", "the same; times 1/s_t before, times s_t after", f4.matmul_fp4_per_timestep, (), True),
        ("matmul-fp4-opset-21", "MatMul, FP4 codes, opset 21", partial(f4.matmul_fp4, opset=21), ("fp4-opset",), False),
        ("matmul-fp4-rank-4", "MatMul, FP4 codes of four dimensions", f4.matmul_fp4_rank_4, ("fp4-rank",), True),
        (
            "matmul-fp4-computed-global-scale", "the same, the global scale a table's row", partial(f4.matmul_fp4, scale="computed"),
            ("fp4-global-scale",), True,
        ),
        ("conv-fp4", "Conv 1 × 1, FP4 codes", f4.conv_fp4, ("fp4-convolution",), True),
    )
)  # fmt: skip
_ONNXRUNTIME = tuple(
    Pattern(name, title, build, lint, target="onnxruntime")
    for name, title, build, lint in (
        (
            "conv-gathered-output",
            "Conv, uint8, gathered scales, output quantized",
            partial(g.conv_gathered, requantized=True, bias=False),
            (),
        ),
        ("conv-gathered", "Conv, uint8, gathered scales", partial(g.conv_gathered, requantized=False, bias=False), ("float-convolution",)),
        (
            "conv-gathered-bias",
            "Conv with a float bias, uint8, gathered scales, output quantized",
            partial(g.conv_gathered, requantized=True, bias=True),
            ("convolution-bias",),
        ),
        ("matmul-bfloat16", "MatMul in bfloat16", a.matmul_bfloat16, ("bfloat16",)),
        ("boolean-where", "Where between booleans", a.boolean_where, ("boolean-where",)),
        ("matmul-gathered-uint8", "MatMul, uint8, gathered scales", partial(g.matmul_gathered, unsigned=True, bias=False), ()),
        ("matmul-gathered-bias", "MatMul and bias, uint8, gathered scales", partial(g.matmul_gathered, unsigned=True, bias=True), ()),
        ("matmul-gathered-int8", "MatMul, int8, gathered scales", partial(g.matmul_gathered, unsigned=False, bias=False), ()),
        ("matmul-bias-int8", "MatMul and bias, int8, constant scales", partial(g.matmul_biased, unsigned=False), ()),
        ("matmul-bias-uint8", "MatMul and bias, uint8, constant scales", partial(g.matmul_biased, unsigned=True), ()),
        (
            "shared-gathered-uint8",
            "three MatMuls on one uint8 DequantizeLinear, gathered scales",
            partial(g.shared_gathered, unsigned=True),
            (),
        ),
        (
            "shared-gathered-int8",
            "three MatMuls on one int8 DequantizeLinear, gathered scales",
            partial(g.shared_gathered, unsigned=False),
            ("shared-int8",),
        ),
        ("matmul-transposed-uint8", "uint8 Q/DQ → Transpose → MatMul", partial(a.matmul_transposed, unsigned=True), ()),
        ("matmul-transposed-int8", "int8 Q/DQ → Transpose → MatMul", partial(a.matmul_transposed, unsigned=False), ("moved-int8",)),
        (
            "matmul-transposed-opset-19",
            "int8 Q/DQ → Transpose → MatMul, opset 19",
            partial(a.matmul_transposed, unsigned=False, opset=19),
            (),
        ),
        (
            "shared-weight-zero-point",
            "two MatMuls, one zero-point initializer for both weights",
            partial(g.shared_weight, codes=False),
            ("shared-weight",),
        ),
        ("shared-weight-codes", "two MatMuls, the same weight codes", partial(g.shared_weight, codes=True), ("shared-weight",)),
        ("matmul-sliced-int8", "int8 Q/DQ → Slice → MatMul", g.matmul_sliced, ("moved-int8",)),
        (
            "scale-per-sample",
            "MatMul, int8, a gathered scale for each sample of the batch",
            g.matmul_scale_per_sample,
            ("scale-per-sample",),
        ),
        ("conv-integer", "ConvInteger", g.conv_integer, ("convolution-integer",)),
        ("opset-27", "MatMul, uint8, opset 27", partial(a.matmul_transposed, unsigned=True, opset=27), ("new-opset",)),
    )
)

GROUPS = {
    "Built as planned": _GOOD,
    "Scales that are computed, or are many": _COMPUTED,
    "Values and types": _VALUES,
    "Weights": _WEIGHTS,
    "Weights of codewords": _CODEBOOKS,
    "FP8": _FLOAT8,
    "FP4, for compute capability 12.0": _FLOAT4,
    "What matters to ONNX Runtime": _ONNXRUNTIME,
}
PATTERNS = {pattern.name: pattern for group in GROUPS.values() for pattern in group}
