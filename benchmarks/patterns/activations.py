"""Patterns of quantized activations. Tiny shapes: it is the pattern that an engine judges."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from .sketch import (
    BFLOAT16,
    CHANNELS,
    FLOAT,
    FLOAT16,
    KERNEL,
    SCALES,
    SIZE,
    SQUARE,
    TOKENS,
    WIDTH,
    Sketch,
    images,
    rescaled,
    tokens,
)


def conv_static(opset: int = 21) -> onnx.ModelProto:
    """A scale for the whole run."""
    s = images(opset=opset)
    return s.model(s.conv(s.qdq(s.sample, s.fixed()), s.weight(KERNEL, 0)))


def matmul_static(**pair: Any) -> onnx.ModelProto:
    """A scale for the whole run."""
    s = tokens()
    return s.model(s.op("MatMul", s.qdq(s.sample, s.fixed(**pair)), s.weight(SQUARE, 1), name="layer/MatMul"))


def matmul_bfloat16() -> onnx.ModelProto:
    """No integers: what ``--dtype bf16`` leaves around them."""
    s = tokens()
    weight = s.cast(s.float_weight("layer.weight", *SQUARE), BFLOAT16, "layer/WeightToBF16")
    y = s.op("MatMul", s.cast(s.sample, BFLOAT16, "layer/ToBF16"), weight, name="layer/MatMul")
    return s.model(s.cast(y, FLOAT, "layer/FromBF16"))


def fourier_transform() -> onnx.ModelProto:
    """A DFT and its real part, as FreeU's filter has them; no integers."""
    s = images()
    pair = s.op("Unsqueeze", s.sample, s.constant("layer.axis", np.array([-1])), name="layer/Unsqueeze")
    length, axis = s.constant("layer.length", np.array(SIZE)), s.constant("layer.along", np.array(2))
    parts = s.op("DFT", pair, length, axis, name="layer/DFT")
    return s.model(s.op("ReduceSum", parts, s.constant("layer.last", np.array([-1])), name="layer/Sum", keepdims=0))


def boolean_where() -> onnx.ModelProto:
    """Where between two booleans, as ``masked_fill`` on a mask gives it; no integers."""
    s = images()
    zero = s.constant("layer.zero", np.float32(0))
    above = s.op("Greater", s.sample, zero, name="layer/Greater")
    chosen = s.op("Where", above, s.op("Not", above, name="layer/Not"), above, name="layer/Where")
    return s.model(s.cast(chosen, FLOAT, "layer/ToFloat"))


def conv_per_timestep(dilated: bool = False) -> onnx.ModelProto:
    """X / s_t before Q/DQ(1), times s_t after the product; with a factor for each channel or without."""
    s = images()
    factor = np.linspace(0.5, 1, CHANNELS, dtype=np.float32).reshape(1, -1, 1, 1) if dilated else None
    x, scale = s.scaled(s.sample, factor=factor)
    return s.model(rescaled(s, s.conv(s.qdq(x, s.unit()), s.weight(KERNEL, 0)), scale))


def matmul_per_timestep() -> onnx.ModelProto:
    """X / s_t before Q/DQ(1), times s_t after the product."""
    s = tokens()
    x, scale = s.scaled(s.sample)
    return s.model(rescaled(s, s.op("MatMul", s.qdq(x, s.unit()), s.weight(SQUARE, 1), name="layer/MatMul"), scale))


def conv_asymmetric() -> onnx.ModelProto:
    """fp16 around: pad, cast, multiply, round, add z_t, clip, Q/DQ(1), conv, correct by Σ Ŵ, multiply, bias, cast."""
    s = images()
    half = s.op("Sigmoid", s.cast(s.sample, FLOAT16, "in/Cast"), name="in/Sigmoid")
    pads = s.constant("layer.pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    padded = s.cast(s.op("Pad", half, pads, name="layer/Pad"), FLOAT, "layer/CastIn")
    x, scale = s.scaled(padded)
    zero = s.gathered("layer.zero_points", np.array([3, -5, 0, 100], np.float32))
    x = s.op("Add", s.op("Round", x, name="layer/Round"), zero, name="layer/Shift")
    x = s.op("Clip", x, s.constant("low", np.float32(-128)), s.constant("high", np.float32(127)), name="layer/Clip")
    y = s.op("Conv", s.qdq(x, s.unit()), s.weight(KERNEL, 0), name="layer/Conv")
    sums = s.float_weight("layer.weight.sum", 1, CHANNELS, 1, 1)
    y = s.op("Sub", y, s.op("Mul", zero, sums, name="layer/Correction"), name="layer/Correct")
    y = s.cast(rescaled(s, y, scale), FLOAT16, "layer/CastOut")
    return s.model(s.cast(y, FLOAT, "out/Cast"))


def conv_narrow() -> onnx.ModelProto:
    """Codes of 6 bits in an INT8 container: clipped before they are quantized."""
    s = images()
    x, scale = s.scaled(s.sample)
    x = s.op("Clip", x, s.constant("low", np.float32(-32)), s.constant("high", np.float32(31)), name="layer/Clip")
    return s.model(rescaled(s, s.conv(s.qdq(x, s.unit()), s.weight(KERNEL, 0)), scale))


def shared_quantizer() -> onnx.ModelProto:
    """Three MatMuls read one quantized tensor, and their outputs are summed."""
    s = tokens()
    x, scale = s.scaled(s.sample, "tokens")
    x = s.qdq(x, s.unit(), "tokens")
    y = [s.op("MatMul", x, s.weight(SQUARE, 1, f"to_{n}"), name=f"to_{n}/MatMul") for n in "qkv"]
    q, k, v = (rescaled(s, value, scale, f"to_{n}") for value, n in zip(y, "qkv", strict=True))
    return s.model(s.op("Add", s.op("Mul", q, k, name="join/Mul"), v, name="join/Add"))


def attention_products() -> onnx.ModelProto:
    """q·kᵀ, softmax, and its product with v, both operands quantized."""
    s = tokens()
    transposed = s.op("Transpose", s.op("Sigmoid", s.sample, name="k/Sigmoid"), name="k/Transpose", perm=[0, 2, 1])
    (q, q_scale), (k, k_scale) = s.scaled(s.sample, "q"), s.scaled(transposed, "k")
    scores = s.op("MatMul", s.qdq(q, s.unit(), "q"), s.qdq(k, s.unit(), "k"), name="qk/MatMul")
    scores = s.op("Mul", scores, s.op("Mul", q_scale, k_scale, name="qk/Scale"), name="qk/Rescale")
    softmax = s.op("Softmax", scores, name="p/Softmax", axis=-1)
    p = s.op("Mul", softmax, s.constant("p.inverse_scale", np.float32(127)), name="p/Scale")
    v, v_scale = s.scaled(s.op("Tanh", s.sample, name="v/Tanh"), "v")
    y = s.op("MatMul", s.qdq(p, s.unit(), "p"), s.qdq(v, s.unit(), "v"), name="pv/MatMul")
    return s.model(s.op("Mul", y, v_scale, name="pv/Rescale"))


def matmul_dynamic() -> onnx.ModelProto:
    """A scale for each token, computed from the token itself: it stays outside of Q/DQ."""
    s = tokens()
    axes = s.constant("axes", np.array([-1]))
    largest = s.op("ReduceMax", s.op("Abs", s.sample, name="layer/Abs"), axes, name="layer/Largest", keepdims=1)
    scale = s.op("Div", largest, s.constant("codes", np.float32(127)), name="layer/TokenScale")
    x = s.qdq(s.op("Div", s.sample, scale, name="layer/Scale"), s.unit())
    return s.model(rescaled(s, s.op("MatMul", x, s.weight(SQUARE, 1), name="layer/MatMul"), scale))


def conv_computed_scale() -> onnx.ModelProto:
    """Q and DQ take a scale that is gathered by the timestep."""
    s = images()
    return s.model(s.conv(s.qdq(s.sample, s.computed()), s.weight(KERNEL, 0)))


def matmul_computed_scale() -> onnx.ModelProto:
    """Q and DQ take a scale that is gathered by the timestep."""
    s = tokens()
    return s.model(s.op("MatMul", s.qdq(s.sample, s.computed()), s.weight(SQUARE, 1), name="layer/MatMul"))


def conv_computed_weight_scale() -> onnx.ModelProto:
    """The activation's scale is constant, the weight's is not."""
    s = images()
    x = s.qdq(s.sample, s.unit())
    scale, zero = s.computed()
    codes = s.constant("layer.weight.codes", s.random.integers(-127, 128, KERNEL).astype(np.int8))
    return s.model(s.conv(x, s.op("DequantizeLinear", codes, scale, zero, name="layer/DequantizeWeight")))


def conv_per_channel_activation() -> onnx.ModelProto:
    """A scale for each input channel."""
    s = images()
    scale = s.constant("layer.scale", np.linspace(0.02, 0.1, CHANNELS, dtype=np.float32))
    x = s.qdq(s.sample, (scale, s.constant("layer.zero_point", np.zeros(CHANNELS, np.int8))), axis=1)
    return s.model(s.conv(x, s.weight(KERNEL, 0)))


def conv_folded_scale() -> onnx.ModelProto:
    """The scale is a constant that passes through a Cast."""
    s = images()
    scale = s.cast(s.constant("layer.scale", np.float16(0.05)), FLOAT, "layer/CastScale")
    return s.model(s.conv(s.qdq(s.sample, (scale, s.constant("zero", np.int8(0)))), s.weight(KERNEL, 0)))


def table_scale(value: float) -> onnx.ModelProto:
    """A bad row in the table of a per-timestep scale."""
    s = images()
    s.constant("layer.scale", np.array([*SCALES[:2], value, SCALES[3]], np.float32).reshape(-1, 1, 1, 1))
    x, scale = s.scaled(s.sample)
    return s.model(rescaled(s, s.conv(s.qdq(x, s.unit()), s.weight(KERNEL, 0)), scale))


def half_scale(value: float) -> onnx.ModelProto:
    """Q/DQ in fp16, whose scale is cast from fp32."""
    s = tokens()
    half = s.cast(s.sample, FLOAT16, "in/Cast")
    scale = s.cast(s.constant("layer.scale", np.float32(value)), FLOAT16, "layer/CastScale")
    x = s.qdq(half, (scale, s.constant("zero", np.int8(0))))
    codes = s.constant("layer.weight.codes", s.random.integers(-127, 128, SQUARE).astype(np.int8))
    weight = s.op("DequantizeLinear", codes, s.constant("layer.weight.scale", np.float16(0.01)), name="layer/DequantizeWeight")
    return s.model(s.cast(s.op("MatMul", x, weight, name="layer/MatMul"), FLOAT, "out/Cast"))


def gemm_computed_scale() -> onnx.ModelProto:
    """Q and DQ take a scale that is gathered by the timestep."""
    s = Sketch(WIDTH)
    return s.model(s.op("Gemm", s.qdq(s.sample, s.computed()), s.weight(SQUARE, 1), name="layer/Gemm"))


def matmul_per_token_activation() -> onnx.ModelProto:
    """A constant scale for each token."""
    s = tokens()
    scale = s.constant("layer.scale", np.linspace(0.01, 0.1, TOKENS, dtype=np.float32))
    x = s.qdq(s.sample, (scale, s.constant("layer.zero_point", np.zeros(TOKENS, np.int8))), axis=1)
    return s.model(s.op("MatMul", x, s.weight(SQUARE, 1), name="layer/MatMul"))


def matmul_no_zero_point(**attributes: Any) -> onnx.ModelProto:
    """QuantizeLinear without a zero-point: uint8 codes, unless an attribute says otherwise."""
    s = tokens()
    scale = s.constant("layer.scale", np.float32(0.05))
    codes = s.op("QuantizeLinear", s.sample, scale, name="layer/Q", **attributes)
    x = s.op("DequantizeLinear", codes, scale, name="layer/DQ")
    return s.model(s.op("MatMul", x, s.weight(SQUARE, 1), name="layer/MatMul"))


def matmul_transposed(*, unsigned: bool, opset: int = 21) -> onnx.ModelProto:
    """The activation is transposed between its DequantizeLinear and the product."""
    s = tokens(opset=opset)
    x = s.qdq(s.sample, s.fixed(0.05, 128, np.uint8) if unsigned else s.fixed())
    moved = s.op("Transpose", x, name="layer/Transpose", perm=[0, 2, 1])
    return s.model(s.op("MatMul", moved, s.weight((TOKENS, WIDTH), 1), name="layer/MatMul"))


def conv_through(op: str, *, computed: bool, **attributes: Any) -> onnx.ModelProto:
    """Something stands between Q/DQ and the convolution."""
    s = images()
    pair = s.computed() if computed else s.fixed()
    x = s.qdq(s.sample, pair)
    if op == "Concat":
        other = s.qdq(s.op("Tanh", s.sample, name="other/Tanh"), pair, "other")
        return s.model(s.conv(s.op("Concat", x, other, name="layer/Concat", axis=1), s.weight((CHANNELS, 2 * CHANNELS, 3, 3), 0)))
    more = [s.constant("layer.pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))] if op == "Pad" else []
    return s.model(s.conv(s.op(op, x, *more, name=f"layer/{op}", **attributes), s.weight(KERNEL, 0)))


def conv_transpose_computed_scale() -> onnx.ModelProto:
    """Q and DQ of a ConvTranspose take a scale that is gathered by the timestep."""
    s = images()
    return s.model(s.op("ConvTranspose", s.qdq(s.sample, s.computed()), s.weight(KERNEL, 1), name="layer/ConvTranspose"))


def matmul_computed_weight_scale() -> onnx.ModelProto:
    """The activation's scale is constant, the weight's is not."""
    s = tokens()
    scale, zero = s.computed()
    codes = s.constant("layer.weight.codes", s.random.integers(-127, 128, SQUARE).astype(np.int8))
    weight = s.op("DequantizeLinear", codes, scale, zero, name="layer/DequantizeWeight")
    return s.model(s.op("MatMul", s.qdq(s.sample, s.unit()), weight, name="layer/MatMul"))


def conv_computed_quantize() -> onnx.ModelProto:
    """Only the QuantizeLinear takes a computed scale."""
    s = images()
    codes = s.op("QuantizeLinear", s.sample, *s.computed(), name="layer/Q")
    return s.model(s.conv(s.op("DequantizeLinear", codes, *s.unit(), name="layer/DQ"), s.weight(KERNEL, 0)))


def conv_computed_output() -> onnx.ModelProto:
    """A Q/DQ pair with a computed scale behind the convolution, in front of none."""
    s = images()
    unit = s.unit()
    return s.model(s.qdq(s.conv(s.qdq(s.sample, unit), s.weight(KERNEL, 0)), s.computed(), "after"))
