"""How a graph says that activations are made FP4 codes: an operator of TensorRT's own, which ONNX has none for."""

from __future__ import annotations

FP4_DOMAIN, FP4_OPERATOR = "trt", "TRT_FP4DynamicQuantize"
FP4_OPSET = 23
"""The lowest of ONNX whose DequantizeLinear takes FP4 codes."""
FP4_IR_VERSION = 11
"""Of ONNX's file format, likewise."""
FP4_RANKS = (2, 3)
"""Dimensions of what TensorRT takes there: a matrix, or a batch of them."""
