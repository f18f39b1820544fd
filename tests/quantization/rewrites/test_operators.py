"""Operators that capture writes as others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import SHAPE, captured, targets


class Padded(nn.Module):
    def __init__(self, padding: Any, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, kernel, padding=padding, dilation=dilation)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + t[:, None, None, None]


@pytest.mark.parametrize(("padding", "kernel", "target"), [("same", 3, "aten.conv2d.default"), ("valid", 2, "aten.conv2d.default"),
                                                           ("same", 2, "aten.conv2d.padding"), (1, 3, "aten.conv2d.default")])  # fmt: skip
def test_padding_by_name_becomes_numbers_where_both_sides_get_as_much(padding: Any, kernel: int, target: str) -> None:
    model = Padded(padding, kernel, dilation=1 if kernel == 2 else 2)
    graph = captured(model)
    assert target in targets(graph)
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(graph(x, torch.zeros(2)), model(x, torch.zeros(2)))


class Einsum(nn.Module):
    def __init__(self, equation: str, count: int) -> None:
        super().__init__()
        self.equation, self.count = equation, count

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.einsum(self.equation, *[x] * self.count) + t.reshape(-1, *[1] * (len(self.equation.split("->")[1].split()) - 1))


@pytest.mark.parametrize(
    ("equation", "count", "target"),
    [
        ("n c h w -> n w c h", 1, "aten.permute.default"),
        ("n c h h -> n c h", 1, "aten.einsum.default"),
    ],
    ids=["permutation", "diagonal"],
)
def test_an_einsum_that_only_permutes_is_a_permutation(equation: str, count: int, target: str) -> None:
    model = Einsum(equation, count)
    graph = captured(model)
    assert [t for t in targets(graph) if "permute" in t or "einsum" in t] == [target]
    x, t = torch.randn(3, *SHAPE), torch.zeros(3)
    torch.testing.assert_close(graph(x, t), model(x, t))


class Attention(nn.Module):
    def __init__(self, mask: str) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = x + t[:, None, None, None]
        if self.mask == "bool":
            return nn.functional.scaled_dot_product_attention(y, y, x, attn_mask=(y[..., :1] > -1) | (y > 0))
        if self.mask == "float":
            return nn.functional.scaled_dot_product_attention(y, y, x, attn_mask=y * 0.5, scale=0.3)
        return nn.functional.scaled_dot_product_attention(y, y, x, is_causal=self.mask == "causal")


@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
def test_attention_is_two_products_and_a_softmax(mask: str) -> None:
    model = Attention(mask)
    graph = captured(model)
    found = targets(graph)
    assert found.count("aten.matmul.default") == 2
    x, t = torch.randn(3, *SHAPE), torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(graph(x, t), model(x, t), rtol=1e-4, atol=1e-5)
