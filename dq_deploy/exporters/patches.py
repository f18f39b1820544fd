"""The codes that a convolution multiplies, as the rows of one matrix: what turns an integer convolution into an integer matrix product.

ONNX Runtime has no fast integer convolution whose sums stay what they are (docs/decisions/onnxruntime-convolutions.md). Its integer matrix
product is fast, so each output pixel gets a row of the kh · kw · C codes below it, copied by one Gather. A pixel outside of the picture is
the zero-point, which stands for the real number 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .emitter import Emitter, attributes


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution: sizes of the kernel, strides, pads (top, left, bottom, right) and dilations."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]

    @classmethod
    def of(cls, node: ir.Node, weight_shape: Sequence[int]) -> Window:
        """That of a Conv placeholder whose weight is [O, C, kh, kw]."""
        options = attributes(node)
        kh, kw = weight_shape[2:]
        (sh, sw), (dh, dw) = options["strides"], options["dilations"]
        top, left, bottom, right = options["pads"]
        return cls((kh, kw), (sh, sw), (top, left, bottom, right), (dh, dw))

    def __str__(self) -> str:
        parts = (self.kernel, self.strides, self.pads, self.dilations)
        return "_".join("x".join(map(str, part)) for part in parts)

    @property
    def copies(self) -> bool:
        """Whether a row is anything but one pixel in its place."""
        return self.kernel != (1, 1) or self.strides != (1, 1)

    def pixels(self, height: int, width: int) -> np.ndarray[tuple[int, int, int, int], np.dtype[np.int32]]:
        """Number of the pixel of a padded picture that lies below each output pixel and kernel position, [h', w', kh, kw]."""
        size = [
            (length - d * (k - 1) - 1) // s + 1
            for length, k, s, d in zip((height, width), self.kernel, self.strides, self.dilations, strict=True)
        ]
        y, x, a, b = np.meshgrid(*(np.arange(n) for n in (*size, *self.kernel)), indexing="ij")
        rows, columns = y * self.strides[0] + a * self.dilations[0], x * self.strides[1] + b * self.dilations[1]
        return (rows * width + columns).astype(np.int32)


def patches(emit: Emitter, codes: ir.Value, shape: Sequence[int], zero_point: ir.Value, window: Window) -> ir.Value:
    """Codes [N, C, H, W], of ``shape`` [C, H, W], as [N, H', W', kh · kw · C]."""
    channels, height, width = shape
    dtype = codes.dtype
    assert dtype is not None

    def sizes(*values: int) -> ir.Value:
        return emit.constant(f"dq_deploy.sizes_{'_'.join(map(str, values))}", np.array(values, dtype=np.int64))

    rows = emit.op("Transpose", [codes], name="channels_last", dtype=dtype, perm=[0, 2, 3, 1])
    top, left, bottom, right = window.pads
    if any(window.pads):
        rows = emit.op("Pad", [rows, sizes(0, top, left, 0, 0, bottom, right, 0), zero_point], dtype=dtype)
        height, width = height + top + bottom, width + left + right
    if not window.copies:
        return rows
    pixels = window.pixels(height, width)
    which = emit.constant(f"dq_deploy.pixels_{height}x{width}_{window}", pixels.reshape(-1))
    rows = emit.op("Reshape", [rows, sizes(-1, height * width, channels)], name="pixels", dtype=dtype)
    rows = emit.op("Gather", [rows, which], dtype=dtype, axis=1)
    return emit.op(
        "Reshape", [rows, sizes(-1, *pixels.shape[:2], channels * window.kernel[0] * window.kernel[1])], name="rows", dtype=dtype
    )


def matrix(codes: np.ndarray, groups: int) -> np.ndarray:
    """A convolution's weight [O, C, kh, kw] as the matrix [kh · kw · C, O] that patches are multiplied by.

    Of a grouped convolution C is its groups' together, with zeros where an output does not see an input.
    """
    if groups > 1:
        outputs, inputs = len(codes) // groups, codes.shape[1]
        dense = np.zeros((len(codes), groups * inputs, *codes.shape[2:]), codes.dtype)
        for group in range(groups):
            rows = slice(group * outputs, (group + 1) * outputs)
            dense[rows, group * inputs : (group + 1) * inputs] = codes[rows]
        codes = dense
    return np.ascontiguousarray(codes.transpose(2, 3, 1, 0).reshape(-1, len(codes)))
