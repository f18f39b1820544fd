from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.formats import of_bits
from dq_deploy.quantization import numerics
from dq_deploy.quantization.distillation.optimizers import TableAdam
from dq_deploy.quantization.quantizers import TableQuantizer
from dq_deploy.quantization.weights import QuantizedConv2d, QuantizedLinear, QuantizedMatmul, QuantizedWeight

TIMESTEPS = torch.tensor([0.0, 100.0, 200.0, 300.0])


def quantizer(bits: int = 8, *, symmetric: bool = False, channels: int = 3, axis: int = 1) -> TableQuantizer:
    made = TableQuantizer(TIMESTEPS, of_bits(bits), symmetric=symmetric, axis=axis, channels=channels)
    qmin = -(2 ** (bits - 1))
    made.set_tables(
        torch.tensor([0.01, 0.02, 0.04, 0.08]) * 2 ** (8 - bits), torch.zeros(4) if symmetric else torch.tensor([0.0, 1, -1, qmin])
    )
    return made


@given(bits=st.integers(2, 8), symmetric=st.booleans(), seed=st.integers(0, 2**31))
def test_codes_are_integers_in_range(bits: int, symmetric: bool, seed: int) -> None:
    made = quantizer(bits, symmetric=symmetric)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 10
    codes, scale = made(x, TIMESTEPS)
    zero_point = made.zero_point_table().float().reshape(-1, 1, 1, 1)
    assert torch.equal(codes, codes.round())
    assert float((codes + zero_point).min()) >= -(2 ** (bits - 1))
    assert float((codes + zero_point).max()) <= 2 ** (bits - 1) - 1
    torch.testing.assert_close(scale, made.scale_table())


def test_each_sample_of_a_batch_has_its_own_row() -> None:
    made = quantizer()
    x = torch.randn(6, 3, 4, 4)
    t = torch.tensor([300.0, 0.0, 149.0, 150.0, 151.0, 1e6])
    codes, scale = made(x, t)
    assert made.scale_table()[torch.tensor([3, 0, 1, 1, 2, 3])].tolist() == scale.tolist()
    for i in range(len(x)):
        alone = made(x[i : i + 1], t[i : i + 1])
        assert torch.equal(alone.codes[0], codes[i])


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_row_is_trained_by_its_own_timesteps_only(symmetric: bool) -> None:
    """Untouched rows stay as they are, bit for bit, also after earlier batches gave their moments a direction."""
    made = quantizer(symmetric=symmetric)
    parameters = [made.log_scale] if symmetric else [made.log_scale, made.zero_point]
    optimizer = TableAdam(dict.fromkeys(parameters, 0.01))
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def step(timesteps: list[float]) -> torch.Tensor:
        before = torch.cat([p.detach().clone() for p in parameters], dim=1)
        t = torch.tensor(timesteps)
        codes, scale = made(x[: len(t)], t)
        (codes * scale.reshape(-1, 1, 1, 1) - x[: len(t)]).pow(2).sum().backward()
        optimizer.step(torch.zeros(4, dtype=torch.bool).index_fill(0, numerics.select_table_rows(t, made.boundaries), True))
        optimizer.zero_grad()
        return (torch.cat([p.detach() for p in parameters], dim=1) != before).any(dim=1)

    for _ in range(3):
        assert step([0.0, 100.0, 200.0, 300.0]).all()
    for _ in range(3):
        assert step([100.0, 110.0, 140.0]).tolist() == [False, True, False, False]
    assert step([0.0, 290.0]).tolist() == [True, False, False, True]


def test_dilation_divides_before_the_scalar_scale() -> None:
    made = quantizer(symmetric=True)
    made.dilation.copy_(torch.tensor([1.0, 2.0, 4.0]))
    x = torch.randn(1, 3, 4, 4)
    expected = (x / torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1) / made.scale_table()[0]).round().clamp(-128, 127)
    assert (made(x, TIMESTEPS[:1]).codes - expected).abs().max() <= 1
    assert (made(x, TIMESTEPS[:1]).codes == expected).float().mean() > 0.95


CONVS = [
    {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1},
    {"stride": [2, 1], "padding": [0, 2], "dilation": [1, 2], "groups": 1},
    {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 2},
    {"stride": [2, 2], "padding": [2, 1], "dilation": [2, 1], "groups": 4},
]


@pytest.mark.parametrize("geometry", CONVS)
@pytest.mark.parametrize("bias", [True, False])
def test_an_integer_convolution_is_the_convolution_of_the_dequantized(geometry: dict, bias: bool) -> None:
    weight = torch.randn(8, 4 // geometry["groups"], 3, 3)
    layer = QuantizedConv2d(weight, torch.randn(8) if bias else None, of_bits(8), **geometry)
    made = quantizer(channels=4)
    x, t = torch.randn(4, 4, 9, 7), TIMESTEPS
    codes, scale = layer.integer_weight()
    a = made(x, t)
    expected = F.conv2d(a.codes * a.scale.reshape(-1, 1, 1, 1), codes * scale.reshape(-1, 1, 1, 1), layer.bias, **geometry)
    torch.testing.assert_close(layer(a), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (4, 2, 3, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_an_integer_linear_layer_takes_any_rank(shape: tuple[int, ...], bias: bool) -> None:
    layer = QuantizedLinear(torch.randn(3, 6), torch.randn(3) if bias else None, of_bits(8))
    a = quantizer(channels=6, axis=-1)(torch.randn(shape), TIMESTEPS)
    codes, scale = layer.integer_weight()
    dequantized = a.codes * a.scale.reshape(-1, *[1] * (len(shape) - 1))
    torch.testing.assert_close(layer(a), F.linear(dequantized, codes * scale[:, None], layer.bias), rtol=1e-4, atol=1e-5)


def test_a_product_of_two_activations_scales_by_both() -> None:
    left, right = quantizer(channels=1, axis=0), quantizer(symmetric=True, channels=1, axis=0)
    a, b = left(torch.randn(4, 2, 3, 5), TIMESTEPS), right(torch.randn(4, 2, 5, 6), TIMESTEPS)
    expected = (a.codes * a.scale.reshape(-1, 1, 1, 1)) @ (b.codes * b.scale.reshape(-1, 1, 1, 1))
    torch.testing.assert_close(QuantizedMatmul()(a, b), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_freezing_changes_no_output(bits: int) -> None:
    layer: QuantizedWeight = QuantizedLinear(torch.randn(3, 6), torch.randn(3), of_bits(bits))
    made = quantizer(bits, channels=6, axis=-1)
    x = torch.randn(4, 6)
    before = layer(made(x, TIMESTEPS))
    layer.freeze()
    made.freeze()
    assert torch.equal(layer(made(x, TIMESTEPS)), before)
    assert layer.frozen is not None
    assert layer.frozen[0].dtype == torch.int8
    assert int(layer.frozen[0].abs().max()) <= 2 ** (bits - 1) - 1
    assert not any(p.requires_grad for m in (layer, made) for p in m.parameters())
