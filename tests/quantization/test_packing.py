"""Two codes to a byte."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.quantization.weights.packing import pack_int4, unpack_int4


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**31))
def test_unpacking_gives_back_what_was_packed_in_the_bytes_of_onnx(shape: list[int], seed: int) -> None:
    codes = torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    packed = pack_int4(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((codes.numel() + 1) // 2,)
    assert packed.numpy().tobytes() == ir.tensor(codes.numpy().astype(ir.DataType.INT4.numpy())).tobytes()
    assert torch.equal(unpack_int4(packed, shape), codes)


def test_a_view_is_packed_in_its_own_order() -> None:
    codes = torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4).clamp(-7, 7)
    assert torch.equal(unpack_int4(pack_int4(codes.T), (4, 3)), codes.T)


@pytest.mark.parametrize(("packed", "shape"), [
    (torch.zeros(2, dtype=torch.uint8), (5,)),
    (torch.zeros(2, dtype=torch.int8), (4,)),
    (torch.zeros(2, 1, dtype=torch.uint8), (4,)),
    (torch.zeros(0, dtype=torch.uint8), (0,)),
    (torch.zeros(2, dtype=torch.uint8), (-2, -2)),
    (torch.full((2,), 0x70, dtype=torch.uint8), (3,)),
])  # fmt: skip
def test_what_was_not_packed_is_refused(packed: torch.Tensor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="code"):
        unpack_int4(packed, shape)
