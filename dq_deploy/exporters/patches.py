"""The codes that a convolution multiplies, as the rows of one matrix: what turns an integer convolution into an integer matrix product.

ONNX Runtime has no fast integer convolution whose sums stay what they are (docs/decisions/onnxruntime-convolutions.md). Its integer matrix
product is fast, so each output pixel gets a row of the kh · kw · C codes below it, copied by one Gather. A pixel outside of the picture is
the zero-point, which stands for the real number 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


def patches(emit: Emitter, codes: ir.Value, shape: Sequence[int | None], zero_point: ir.Value, window: Window) -> ir.Value:
    """Codes [N, C, H, W], of ``shape`` [C, H, W], as [N, H', W', kh · kw · C]. A free H or W is None: pixels are numbered at a run."""
    channels, height, width = shape
    assert channels is not None
    dtype = codes.dtype
    assert dtype is not None

    rows = emit.op("Transpose", [codes], name="channels_last", dtype=dtype, perm=[0, 2, 3, 1])
    top, left, bottom, right = window.pads
    if any(window.pads):
        rows = emit.op("Pad", [rows, emit.sizes(0, top, left, 0, 0, bottom, right, 0), zero_point], dtype=dtype)
        height = None if height is None else height + top + bottom
        width = None if width is None else width + left + right
    if not window.copies:
        return rows
    if height is None or width is None:
        return _of_free_size(emit, rows, channels, window)
    pixels = window.pixels(height, width)
    which = emit.constant(f"dq_deploy.pixels_{height}x{width}_{window}", pixels.reshape(-1))
    rows = emit.op("Reshape", [rows, emit.sizes(-1, height * width, channels)], name="pixels", dtype=dtype)
    rows = emit.op("Gather", [rows, which], dtype=dtype, axis=1)
    return emit.op(
        "Reshape", [rows, emit.sizes(-1, *pixels.shape[:2], channels * window.kernel[0] * window.kernel[1])], name="rows", dtype=dtype
    )


def _of_free_size(emit: Emitter, rows: ir.Value, channels: int, window: Window) -> ir.Value:
    """The pixels [N, H, W, C] of a picture of any size, padded already, as [N, H', W', kh · kw · C]."""
    dtype, arithmetic = rows.dtype, _Arithmetic(emit)
    assert dtype is not None
    (_, down), (width, right) = (arithmetic.places(rows, axis, window) for axis in (0, 1))
    pixels = arithmetic("Add", arithmetic("Mul", down, width), right)  # [H', W', kh, kw]
    flat = emit.op("Reshape", [pixels, arithmetic.number([-1])], name="which", dtype=ir.DataType.INT64)
    every = emit.op("Reshape", [rows, arithmetic.number([0, -1, channels])], name="pixels", dtype=dtype)
    picked = emit.op("Gather", [every, flat], dtype=dtype, axis=1)
    size = emit.op("Shape", [pixels], name="size", dtype=ir.DataType.INT64, start=0, end=2)
    columns = arithmetic.number([channels * window.kernel[0] * window.kernel[1]])
    made = emit.op("Concat", [arithmetic.number([-1]), size, columns], name="shape", dtype=ir.DataType.INT64, axis=0)
    return emit.op("Reshape", [picked, made], name="rows", dtype=dtype)


class _Arithmetic:
    """Whole numbers of a graph."""

    def __init__(self, emit: Emitter) -> None:
        self._emit, self._count = emit, 0

    def number(self, value: int | Sequence[int]) -> ir.Value:
        name = "_".join(map(str, value)) if isinstance(value, Sequence) else f"scalar_{value}"
        return self._emit.constant(f"dq_deploy.sizes_{name}", np.array(value, dtype=np.int64))

    def __call__(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        self._count += 1
        return self._emit.op(operator, inputs, name=f"{operator}_{self._count}", dtype=ir.DataType.INT64, **attributes)

    def places(self, rows: ir.Value, axis: int, window: Window) -> tuple[ir.Value, ir.Value]:
        """The size of ``rows`` [N, H, W, C] down or across, and the place in it below each output and kernel position, to broadcast."""
        kernel, stride, dilation = window.kernel[axis], window.strides[axis], window.dilations[axis]
        length = self("Squeeze", self("Shape", rows, start=1 + axis, end=2 + axis), self.number([0]))
        steps = self("Div", self("Sub", length, self.number(dilation * (kernel - 1) + 1)), self.number(stride))
        ends = self("Mul", self("Add", steps, self.number(1)), self.number(stride))
        outputs = self("Range", self.number(0), ends, self.number(stride))
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        inner = np.arange(kernel, dtype=np.int64).reshape([-1 if i == 2 + axis else 1 for i in range(4)]) * dilation
        within = self._emit.constant(f"dq_deploy.kernel_{axis}_{kernel}_{dilation}", inner)
        return length, self("Add", self("Reshape", outputs, self.number(shape)), within)


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
