"""Calling a captured graph: its inputs by their names, on whatever device it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.fx import GraphModule


def device_of(graph: GraphModule) -> torch.device:
    """Where a captured graph's weights are."""
    return next(graph.buffers()).device


def arguments(
    graph: GraphModule, sample: torch.Tensor, timestep: torch.Tensor, conditions: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """The inputs [N, ...] of a captured graph, whose first is the sample, in its order and on its device."""
    names = [str(n.target) for n in graph.graph.find_nodes(op="placeholder")]
    values = {names[0]: sample, "timestep": timestep, **conditions}
    return [values[name].to(device_of(graph)) for name in names]


def as_model(graph: GraphModule) -> Callable[..., torch.Tensor]:
    """A graph as ``model(sample, timestep, **conditions)``: arguments and result [N, ...] on the CPU, whatever the graph's device."""

    def model(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = graph(*arguments(graph, sample, timestep, conditions))
        return result.cpu()

    return model
