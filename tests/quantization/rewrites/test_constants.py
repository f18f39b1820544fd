from __future__ import annotations

import torch
from torch import nn
from torch.fx import Graph

from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.capture import capture
from dq_deploy.quantization.graph.plan import make_plan
from dq_deploy.quantization.graph.rewrites.constants import is_constant


def test_a_value_behind_thousands_of_others_is_judged_without_recursion() -> None:
    graph = Graph()
    ends = []
    for start in (graph.placeholder("x"), graph.get_attr("weight")):
        value = start
        for _ in range(5000):
            value = graph.call_function(torch.add, (value, value))
        ends.append(value)
    assert [is_constant(end) for end in ends] == [False, True]


class Positions(nn.Module):
    """Tokens whose places are embedded by two layers, and turned by a product of frequencies, as vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inward, self.outward = nn.Linear(2, 8), nn.Linear(8, 2)
        self.embedding = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 8))
        self.register_buffer("frequencies", torch.randn(2, 8))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        grid = torch.cartesian_prod(torch.arange(x.shape[1], dtype=x.dtype), torch.arange(2.0))[::2] + 1
        h = self.inward(x) + self.embedding(grid) + t[:, None, None] / 1000
        return self.outward(h * torch.cos(grid @ self.frequencies))


def test_products_of_constants_are_constants() -> None:
    model = Positions().eval()
    x, t = torch.randn(2, 4, 2), torch.tensor([1.0, 700.0])
    graph = capture(model, {"x": x, "timestep": t})
    plan = make_plan(graph, QuantizeConfig.build("w8a8", max_float_share=1.0))
    assert [layer.name for layer in plan.layers] == ["inward", "outward"]
    for samples in (x, torch.randn(5, 4, 2)):
        timestep = t[:1].expand(len(samples))
        torch.testing.assert_close(graph(samples, timestep), model(samples, timestep))
