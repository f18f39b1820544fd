"""The fused steps against the same arithmetic left to autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dq_deploy.formats import of_bits
from dq_deploy.quantization import numerics
from dq_deploy.quantization.numerics import per_channel, per_sample


def round_ste(x: torch.Tensor) -> torch.Tensor:
    return x.round().detach() + (x - x.detach())


def activation(x: torch.Tensor, inverse: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    qmin, qmax = of_bits(bits).code_range()
    z = round_ste(zero)
    return torch.clamp(round_ste(x * inverse), qmin - z, qmax - z)


def weight(w: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    return torch.clamp(round_ste(w / per_channel(scale, w, 0)), *of_bits(bits).code_range(narrow=True))


def values_and_gradients(
    function: Callable[..., torch.Tensor], arguments: list[torch.Tensor], needed: tuple[bool, ...]
) -> list[torch.Tensor | None]:
    given = [a.clone().requires_grad_(need) for a, need in zip(arguments, needed, strict=True)]
    y = function(*given)
    y.backward(torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1)))
    return [y.detach(), *(a.grad for a in given)]


def assert_equal(got: list[torch.Tensor | None], expected: list[torch.Tensor | None]) -> None:
    assert torch.equal(got[0], expected[0])  # type: ignore[arg-type]
    for a, b in zip(got[1:], expected[1:], strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(5, 6, 4, 4), (5, 7), (5, 3, 8)])
@pytest.mark.parametrize("needed", [(True, True, True), (False, True, True), (True, False, False), (False, True, False)])
def test_activations(bits: int, shape: tuple[int, ...], needed: tuple[bool, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64) * 2 ** (bits - 2)
    x.flatten()[:4] = torch.tensor([0.5, 1.5, -0.5, 2.5])  # ties, to be rounded to even
    inverse, zero = (per_sample(torch.rand(5, dtype=torch.float64) + 0.5, x), per_sample(torch.randn(5, dtype=torch.float64), x))
    inverse[0] = 1
    got = values_and_gradients(lambda *a: numerics.quantize(*a, of_bits(bits)), [x, inverse, zero], needed)
    assert_equal(got, values_and_gradients(lambda *a: activation(*a, bits), [x, inverse, zero], needed))
    with torch.no_grad():  # and the value is the one that is computed without gradients
        assert torch.equal(got[0], numerics.quantize(x, inverse, zero, of_bits(bits)))  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(5, 6, 3, 3), (5, 7)])
@pytest.mark.parametrize("needed", [(True, True), (False, True), (True, False)])
def test_weights(bits: int, shape: tuple[int, ...], needed: tuple[bool, ...]) -> None:
    torch.manual_seed(0)
    w, scale = torch.randn(shape, dtype=torch.float64), torch.rand(5, dtype=torch.float64) / 2 ** (bits - 2) + 0.01
    got = values_and_gradients(lambda *a: numerics.quantize_weight(*a, of_bits(bits)), [w, scale], needed)
    assert_equal(got, values_and_gradients(lambda *a: weight(*a, bits), [w, scale], needed))
    with torch.no_grad():
        assert torch.equal(got[0], numerics.quantize_weight(w, scale, of_bits(bits)))  # type: ignore[arg-type]


def test_a_tie_goes_to_the_even_code_and_passes_its_gradient() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 1e8], requires_grad=True)
    y = numerics.quantize(x, torch.tensor(1.0), torch.tensor(0.0), of_bits(8))
    assert y.tolist() == [0.0, 2.0, 2.0, 0.0, 127.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0] * 4 + [0.0]
