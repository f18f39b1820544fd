"""What a checkpoint's tensors must be before anything is built from them. Every check raises ArtifactError naming the tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch

from ..errors import ArtifactError
from ..formats import CODES as INTEGER_CODES
from ..formats import NumberFormat, recorded
from ..formats.codebook import ENTRIES, Codebook
from ..formats.tables import (
    BLOCK_SCALE,
    CLIPPING_RATIO,
    CODEBOOK_CODES,
    CODES,
    CODEWORDS,
    DILATION,
    GLOBAL_SCALE,
    SCALE,
    WEIGHT_GLOBAL_SCALE,
    WEIGHT_SCALE,
    ZERO_POINT,
)

_TINY = torch.finfo(torch.float32).tiny


def not_finite(tensor: torch.Tensor, *, mask: bool) -> bool:
    """Whether a tensor of any shape has NaN or infinity. ``mask``: it may be one, whose minus infinity is what attention skips."""
    if not tensor.is_floating_point():
        return False
    tensor = tensor.float() if tensor.element_size() == 1 else tensor  # of 8 bits torch does not ask
    fine = torch.isfinite(tensor) | torch.isneginf(tensor) if mask else torch.isfinite(tensor)
    return not bool(fine.all())


def read_format(name: str, entry: Mapping[str, Any]) -> NumberFormat:
    """The number format of a quantizer's or a layer's codes, from its entry in the graph."""
    try:
        return recorded(entry)
    except KeyError:
        said = f"format {entry['format']}, which is not known here" if "format" in entry else f"{entry.get('bits')} bits; 2 to 8 are known"
        raise ArtifactError(f"'{name}' has {said}") from None


def read_widths(name: str, entry: Mapping[str, Any], fmt: NumberFormat) -> tuple[int, ...]:
    """Bits to which a layer's codes may be sliced, from those of ``fmt`` down, from its entry in the graph; none where there is no word."""
    widths = entry.get("widths", [])
    known = all(type(bits) is int and bits in INTEGER_CODES for bits in widths)
    if widths and not (known and widths[0] == fmt.bits and all(a > b for a, b in pairwise(widths))):
        raise ArtifactError(f"'{name}' has weights of {fmt.bits} bits that are said to hold those of {widths} bits")
    return tuple(widths)


def check_quantizer(name: str, tensors: Mapping[str, torch.Tensor], table_rows: int, fmt: NumberFormat, *, channels: int) -> None:
    """Tables [T] of T = ``table_rows`` scales > 0 and, of integers, int8 zero-points in range; and a dilation [C] > 0."""
    scale, zero_point, dilation = (f"{name}.{part}" for part in (SCALE, ZERO_POINT, DILATION))
    _check_scale(scale, tensors[scale], [table_rows], "calibrated timesteps")
    if not fmt.floating:
        _check_codes(zero_point, tensors[zero_point], fmt, narrow=False)
        if tensors[zero_point].shape != (table_rows,):
            raise ArtifactError(f"table '{zero_point}' does not have one row for each of {table_rows} calibrated timesteps")
    elif zero_point in tensors:
        raise ArtifactError(f"there is a table '{zero_point}', and {fmt.name} has no zero-points")
    _check_scale(dilation, tensors[dilation], [channels], "channels")


def check_token_quantizer(name: str, tensors: Mapping[str, torch.Tensor], table_rows: int, *, channels: int) -> None:
    """A table [T] of ``table_rows`` clipping ratios > 0, and a dilation [C] > 0."""
    _check_scale(f"{name}.{CLIPPING_RATIO}", tensors[f"{name}.{CLIPPING_RATIO}"], [table_rows], "calibrated timesteps")
    _check_scale(f"{name}.{DILATION}", tensors[f"{name}.{DILATION}"], [channels], "channels")


def check_block_quantizer(name: str, tensors: Mapping[str, torch.Tensor], *, channels: int) -> None:
    """A global scale [], a power of two, and a dilation [C] > 0."""
    _check_power(f"{name}.{GLOBAL_SCALE}", tensors[f"{name}.{GLOBAL_SCALE}"])
    _check_scale(f"{name}.{DILATION}", tensors[f"{name}.{DILATION}"], [channels], "channels")


def check_fp4_weight(name: str, tensors: Mapping[str, torch.Tensor], fmt: NumberFormat, *, bias: str) -> None:
    """Codes [O, C] among the numbers of FP4, scales of their blocks [O, C / 16] > 0 in E4M3, a global one [], and a bias [O] or none."""
    codes, scale = tensors[f"{name}.{CODES}"], tensors[f"{name}.{BLOCK_SCALE}"]
    _check_codes(f"{name}.{CODES}", codes, fmt, narrow=True)
    expected = [len(codes), codes.shape[-1] // fmt.block]
    if codes.dim() != 2 or codes.shape[1] % fmt.block or list(scale.shape) != expected or scale.dtype != torch.float8_e4m3fn:
        raise ArtifactError(
            f"'{name}' has {fmt.name} codes {tuple(codes.shape)} with scales {scale.dtype} {tuple(scale.shape)}, and blocks of {fmt.block} "
            f"take float8_e4m3fn {tuple(expected)}"
        )
    if not bool((scale.float() > 0).all()):
        raise ArtifactError(f"'{name}.{BLOCK_SCALE}' has a scale that is not above 0")
    _check_power(f"{name}.{WEIGHT_GLOBAL_SCALE}", tensors[f"{name}.{WEIGHT_GLOBAL_SCALE}"])
    _check_bias(bias, tensors.get(bias), len(codes))


def check_weight(name: str, tensors: Mapping[str, torch.Tensor], fmt: NumberFormat, *, bias: str, block: int | None = None) -> None:
    """Codes [O, ...] in the format's type and range, a scale > 0 and, if there is a tensor of the name ``bias``, a bias per output channel.

    With a ``block`` (0: all input channels) the scales are [O, B], one for each block of input channels.
    """
    codes, scale = tensors[f"{name}.{CODES}"], tensors[f"{name}.{WEIGHT_SCALE}"]
    _check_codes(f"{name}.{CODES}", codes, fmt, narrow=True)
    expected = [len(codes)]
    if block is not None:
        if codes.dim() != 2 or block < 0 or codes.shape[1] % (block or 1):
            raise ArtifactError(f"'{name}' has blocks of {block} input channels, and its weight is {list(codes.shape)}")
        expected = [len(codes), codes.shape[1] // block if block else 1]
    _check_scale(f"{name}.{WEIGHT_SCALE}", scale, expected, "output channels" if block is None else "blocks")
    _check_bias(bias, tensors.get(bias), len(codes))


def check_codebook(name: str, tensors: Mapping[str, torch.Tensor], codebook: Codebook, shape: Sequence[int], *, bias: str) -> None:
    """Indices uint8 [O, K/d, M], codewords int8 [M, 256, d] and scales [O] > 0, for ``shape`` [O, ...] with K inputs; and the bias."""
    outputs, inputs, length, books = shape[0], prod(shape[1:]), codebook.length, codebook.books
    wanted = {CODEBOOK_CODES: (torch.uint8, [outputs, inputs // length, books]), CODEWORDS: (torch.int8, [books, ENTRIES, length])}
    for part, (dtype, layout) in wanted.items():
        found = tensors[f"{name}.{part}"]
        if found.dtype != dtype or list(found.shape) != layout or inputs % length:
            raise ArtifactError(f"'{name}.{part}' is {found.dtype} {list(found.shape)}, and a weight {list(shape)} needs {dtype} {layout}")
    _check_scale(f"{name}.{WEIGHT_SCALE}", tensors[f"{name}.{WEIGHT_SCALE}"], [outputs], "output channels")
    _check_bias(bias, tensors.get(bias), outputs)


def check_output_bias(name: str, tensors: Mapping[str, torch.Tensor], table_rows: int) -> None:
    """A table [T, C] of ``table_rows`` rows."""
    table = tensors[name]
    if table.dtype != torch.float32 or table.dim() != 2 or len(table) != table_rows or not table.shape[1]:
        raise ArtifactError(
            f"table '{name}' is {table.dtype} {tuple(table.shape)}, not one row for each of {table_rows} calibrated timesteps"
        )


def _check_power(name: str, scale: torch.Tensor) -> None:
    """One number, a power of two: multiplying by it rounds nothing."""
    fine = scale.shape == () and scale.dtype == torch.float32 and bool(torch.isfinite(scale)) and float(scale) >= _TINY
    if not fine or float(torch.frexp(scale)[0]) != 0.5:
        raise ArtifactError(f"'{name}' is {scale.dtype} {scale.tolist()}, and a global scale is one power of two")


def _check_bias(name: str, bias: torch.Tensor | None, outputs: int) -> None:
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != torch.float32):
        raise ArtifactError(f"'{name}' is {bias.dtype} {tuple(bias.shape)}, and the layer has {outputs} output channels")


def _check_codes(name: str, codes: torch.Tensor, fmt: NumberFormat, *, narrow: bool) -> None:
    low, high = fmt.code_range(narrow=narrow)
    if codes.dtype != getattr(torch, fmt.torch_dtype) or codes.dim() == 0 or not codes.numel():
        raise ArtifactError(f"'{name}' is {codes.dtype} {tuple(codes.shape)}, not a table of {fmt.torch_dtype} codes")
    values = codes.float() if fmt.floating else codes
    smallest, largest = float(values.min()), float(values.max())
    if not (low <= smallest and largest <= high):  # NaN is neither
        raise ArtifactError(f"'{name}' has codes from {smallest:g} to {largest:g}; {fmt.bits} bits reach from {low} to {high}")


def _check_scale(name: str, scale: torch.Tensor, shape: list[int], what: str) -> None:
    if list(scale.shape) != shape or scale.dtype != torch.float32:
        raise ArtifactError(f"table '{name}' is {scale.dtype} {tuple(scale.shape)}, and there are {' × '.join(map(str, shape))} {what}")
    if not bool((scale >= _TINY).all()):
        raise ArtifactError(f"table '{name}' has a zero, negative or subnormal value at row {int(scale.argmin())}")
