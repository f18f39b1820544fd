"""Number formats: their ranges and storage, what they are called on disk, and how another one is added."""

from __future__ import annotations

import subprocess
import sys

import onnx
import pytest
import torch

from dq_deploy.formats import CODES, FORMATS, INT8, Kind, NumberFormat, of_bits, recorded, register_format
from dq_deploy.formats.number import FP4, FP16


def test_codes_reach_as_far_as_their_bits() -> None:
    assert {bits: fmt.code_range() for bits, fmt in CODES.items()} == {b: (-(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in range(2, 9)}
    assert [fmt.code_range(narrow=True) for fmt in CODES.values()] == [(1 - 2 ** (b - 1), 2 ** (b - 1) - 1) for b in range(2, 9)]


def test_up_to_four_bits_share_a_byte() -> None:
    assert [bits for bits, fmt in CODES.items() if fmt.packed] == [2, 3, 4]
    assert [of_bits(bits).storage_bytes([3, 3]) for bits in (2, 4, 5, 8, 16)] == [5, 5, 9, 9, 18]


def test_a_format_is_held_by_types_that_torch_and_onnx_have() -> None:
    for fmt in FORMATS.values():
        dtype = getattr(torch, fmt.torch_dtype)
        if fmt.kind is Kind.FLOAT:
            own = fmt.bits == torch.finfo(dtype).bits  # torch has no FP4, and E4M3 holds its values
            assert own == (fmt is not FP4)
            assert torch.finfo(dtype).max == fmt.largest if own else torch.finfo(dtype).max > fmt.largest
        else:
            assert torch.iinfo(dtype).max >= fmt.largest
        assert onnx.TensorProto.DataType.Value(fmt.onnx_type)


def test_schema_1_names_codes_by_their_bits() -> None:
    assert [of_bits(bits) for bits in (4, 8, 16)] == [FORMATS["INT4"], INT8, FP16]
    for bits, fmt in CODES.items():
        assert fmt.record() == {"bits": bits}
        assert recorded({"bits": bits, "axis": 1}) is fmt
    for unknown in (1, 9, 16):
        with pytest.raises(KeyError):
            recorded({"bits": unknown})


def test_another_format_is_known_by_its_name() -> None:
    added = register_format(NumberFormat("TOY-FIVE", 3, Kind.INTEGER, -2, 2, "int8", "INT4", 4))
    assert register_format(added) is FORMATS["TOY-FIVE"] is added
    assert added.record() == {"format": "TOY-FIVE"}
    assert recorded(added.record()) is added
    with pytest.raises(ValueError, match="another number format is called INT8"):
        register_format(NumberFormat("INT8", 8, Kind.INTEGER, 0, 255, "uint8", "UINT8", 8))


def test_formats_do_without_torch() -> None:
    told = "import sys, dq_deploy.formats, dq_deploy.formats.tables; print(sorted({'torch', 'numpy', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.strip() == "[]"
