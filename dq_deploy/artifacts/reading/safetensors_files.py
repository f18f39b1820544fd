"""Safetensors: the header is judged before a tensor is touched.

The library refuses most of what is wrong already; read here are also the duplicate keys that it passes over, and the error says which
tensor it is. Format: 8 bytes of header length (little endian), that many bytes of JSON, then the tensors' bytes without a hole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArtifactError
from .paths import REMAKE
from .plain import parse_json, refuse_stand_in

if TYPE_CHECKING:
    import numpy as np
    import torch

# As in the library: a header of more is a bomb.
HEADER_LIMIT = 100_000_000
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def check_safetensors(path: Path) -> dict[str, str]:
    """Refuse a file whose header is not a safetensors header, or does not describe the bytes behind it exactly; gives its metadata.

    Raises ArtifactError: oversized or truncated header, duplicate keys, an unknown dtype, a shape that does not fit its bytes, overlaps,
    holes, missing or trailing bytes.
    """
    return _metadata(_checked_header(path))


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor, from the header. Raises ArtifactError as ``check_safetensors`` does."""
    return {name: entry["shape"] for name, entry in _checked_header(path).items() if name != "__metadata__"}


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Those of the tensors that are there, of any shape. Raises ArtifactError as ``check_safetensors`` does."""
    from safetensors import SafetensorError, safe_open  # noqa: TID251  the door

    check_safetensors(path)
    try:
        with safe_open(path, "numpy") as tensors:
            present = set(tensors.keys())
            return {name: tensors.get_tensor(name) for name in names if name in present}
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: a dtype that numpy lacks
        raise ArtifactError(f"{path}: not a valid safetensors file ({error})", REMAKE) from None


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor, of any shape, mapped from the file. Raises ArtifactError as ``check_safetensors`` does."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # noqa: TID251  the door

    check_safetensors(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError) as error:  # the last one: a dtype that torch lacks
        raise ArtifactError(f"{path}: not a valid safetensors file ({error})", REMAKE) from None


def _checked_header(path: Path) -> Mapping[str, Any]:
    refuse_stand_in(path)
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(HEADER_LIMIT, size - 8):
                raise ValueError(f"its header claims {length} bytes, and the file has {size}")
            header = parse_json(stream.read(length))
        _check_header(header, size - 8 - length)
        _metadata(header)
    except ValueError as error:
        raise ArtifactError(f"{path}: not a valid safetensors file ({error})", REMAKE) from None
    assert isinstance(header, Mapping)
    return header


def _check_header(header: Any, size: int) -> None:
    if not isinstance(header, Mapping):
        raise ValueError("its header is not a JSON object")
    spans = sorted(_span(name, entry) for name, entry in header.items() if name != "__metadata__")
    end = 0
    for begin, stop, name in spans:
        if begin != end:
            raise ValueError(f"tensor '{name}' begins at byte {begin}, {'inside of the one before' if begin < end else 'behind a hole'}")
        end = stop
    if end != size:
        raise ValueError(f"its tensors take {end} bytes, and {size} are there")


def _metadata(header: Mapping[str, Any]) -> dict[str, str]:
    found = header.get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("its metadata are not texts")
    return found


def _span(name: str, entry: Any) -> tuple[int, int, str]:
    """(begin, end, name). Raises ValueError when the entry is not one of a tensor, or its shape does not take these bytes."""
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor '{name}' must have a dtype, a shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"tensor '{name}' is of dtype {dtype!r}, which is not known")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor '{name}' has shape {str(shape)[:60]} at bytes {str(offsets)[:60]}")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * _BITS[dtype]:
        raise ValueError(f"tensor '{name}' has {end - begin} bytes, and {dtype} {shape} takes {math.prod(shape) * _BITS[dtype] / 8:g}")
    return begin, end, name


def _sizes(value: Any) -> bool:
    # Beyond 2⁶³ no size is one, and their product would be a number of any length.
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
