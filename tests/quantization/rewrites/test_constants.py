from __future__ import annotations

import torch
from torch.fx import Graph

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
