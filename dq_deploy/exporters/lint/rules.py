"""The table of rules. Each names the engines' targets that it is about; what an engine does is in the docstring of its function."""

from __future__ import annotations

from ...formats.fp4 import FP4_OPSET
from . import codebook_rules, file_rules, fp4_rules, fp8_rules, int4_rules, onnxruntime_rules, operator_rules, product_rules, scale_rules
from .rule import Rule

__all__ = ["RULES", "Rule"]

_QDQ, _ONNXRUNTIME = ("qdq",), ("onnxruntime",)
_BOTH = _QDQ + _ONNXRUNTIME
_OUTSIDE = "keep the Q/DQ scale constant (1) and multiply by 1/s before and by s after, as `dq-deploy export --target qdq` does"
_CALIBRATE = "find out why the calibration gave it, and quantize that layer again or keep it in float"

RULES = (
    Rule("computed-scale-conv", product_rules.computed_scale_conv, _OUTSIDE, _QDQ, crashes=True),
    Rule("computed-scale-matmul", product_rules.computed_scale_matmul, _OUTSIDE, _QDQ),
    Rule(
        "zero-point",
        scale_rules.zero_point,
        "add the zero-point outside of Q/DQ and correct by the weight's sums, or quantize symmetrically",
        _QDQ,
    ),
    Rule("code-type", scale_rules.code_type, "use int8 codes, with an int8 zero-point of 0", _QDQ),
    Rule(
        "no-such-operator",
        operator_rules.not_in_tensorrt,
        "switch off what needs it (FreeU needs a DFT), write it in other operators, or run the graph on ONNX Runtime",
        _QDQ,
    ),
    Rule("boolean-where", operator_rules.boolean_where, "write it with And, Or and Not", _ONNXRUNTIME),
    Rule("zero-scale", scale_rules.zero_scale, _CALIBRATE, _BOTH),
    Rule("negative-scale", scale_rules.negative_scale, _CALIBRATE, _BOTH),
    Rule("non-finite-scale", scale_rules.non_finite_scale, _CALIBRATE, _BOTH),
    Rule("subnormal-scale", scale_rules.subnormal_scale, "keep scales and Q/DQ in fp32, or quantize that layer again", _BOTH),
    Rule(
        "per-channel-activation",
        product_rules.per_channel_activation,
        "one scale a tensor; multiply by the channel's factor before it",
        _QDQ,
    ),
    Rule(
        "float-activation",
        product_rules.float_activation,
        "quantize right before the product, or mean it: weights that are only smaller",
        _QDQ,
        "warning",
    ),
    Rule("weight-scale-axis", product_rules.weight_scale_axis, "quantize the weight along its output channels", _QDQ),
    Rule(
        "block-wise-int8-activation",
        int4_rules.block_wise_int8_activation,
        "one scale for each output channel, or leave the activation in fp16",
        _QDQ,
    ),
    Rule(
        "int4-conv-int8-activation",
        int4_rules.int4_conv_int8_activation,
        "DequantizeLinear(scale 1) → Cast fp16 → QuantizeLinear(int8) → DequantizeLinear per channel, or an activation in fp16",
        _QDQ,
    ),
    Rule("int4-per-tensor-int8-activation", int4_rules.int4_per_tensor_int8_activation, "one scale for each output channel", _QDQ),
    Rule("int4-requantize-uncast", int4_rules.int4_requantize_uncast, "put a Cast to fp16 between the two", _QDQ),
    Rule(
        "int4-requantize-matmul",
        int4_rules.int4_requantize_matmul,
        "dequantize the INT4 codes per channel, straight into the MatMul",
        _QDQ,
        crashes=True,
    ),
    Rule("int4-cast", int4_rules.int4_cast, "read the codes with a DequantizeLinear", _QDQ),
    Rule(
        "codebook-moved",
        codebook_rules.codebook_moved,
        "put the Transpose between the weight's QuantizeLinear and its DequantizeLinear",
        _QDQ,
        crashes=True,
    ),
    Rule("codebook-unsigned", codebook_rules.codebook_unsigned, "store int8 indices behind a DequantizeLinear", _QDQ, "warning"),
    Rule("int4-opset", file_rules.int4_opset, f"export with opset {file_rules.INT4_OPSET} or newer", _BOTH),
    Rule("fp8-opset", fp8_rules.fp8_opset, f"export with opset {fp8_rules.FP8_OPSET} or newer", _BOTH),
    Rule("fp8-half-scale", fp8_rules.fp8_half_scale, "keep scales of FP8 codes in fp32, and cast behind the product", _QDQ),
    Rule("fp8-unsaturated", fp8_rules.fp8_unsaturated, "leave out the attribute saturate, or set it to 1", _BOTH),
    Rule("fp4-opset", fp4_rules.fp4_opset, f"export with opset {FP4_OPSET} or newer", _QDQ),
    Rule("fp4-convolution", fp4_rules.fp4_convolution, "quantize it in FP8 or INT8", _QDQ),
    Rule("fp4-rank", fp4_rules.fp4_rank, "reshape it to [N, tokens, channels] first, or quantize the layer in FP8", _QDQ),
    Rule("fp4-global-scale", fp4_rules.fp4_global_scale, "make it an initializer, and put a table's arithmetic before the operator", _QDQ),
    Rule("new-opset", file_rules.new_opset, "export with opset 21", _ONNXRUNTIME),
    Rule("external-data", file_rules.external_data, "save the data beside the model, under a relative name", _BOTH),
    Rule("invalid-onnx", file_rules.invalid_onnx, "export the graph again", _BOTH),
    Rule(
        "moved-int8",
        onnxruntime_rules.moved_int8,
        "move the values before they are quantized, or use uint8 with zero-point 128",
        _ONNXRUNTIME,
    ),
    Rule("bfloat16", onnxruntime_rules.bfloat16, "export with --dtype fp32, or with --target qdq for TensorRT", _ONNXRUNTIME),
    Rule("shared-weight", onnxruntime_rules.shared_weight, "give every layer codes and zero-points of its own", _ONNXRUNTIME),
    Rule(
        "float-convolution",
        onnxruntime_rules.float_convolution,
        "quantize its output too, or run target qdq on OpenVINO",
        _ONNXRUNTIME,
        "warning",
    ),
    Rule("convolution-bias", onnxruntime_rules.convolution_bias, "add the bias after the convolution", _ONNXRUNTIME, "warning"),
    Rule("shared-int8", onnxruntime_rules.shared_int8, "use uint8 codes with zero-point 128", _ONNXRUNTIME, "warning"),
    Rule("scale-per-sample", onnxruntime_rules.scale_per_sample, "one scalar scale for the batch", _ONNXRUNTIME, "warning"),
    Rule(
        "convolution-integer",
        onnxruntime_rules.convolution_integer,
        "use QuantizeLinear, DequantizeLinear and Conv",
        _ONNXRUNTIME,
        "warning",
    ),
)
