"""The device that the long steps of a quantization run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.node import map_aggregate

from ...errors import EnvironmentProblem, UsageError


def find_device(name: str) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:N``. Raises UsageError for another name, EnvironmentProblem where there is no such GPU."""
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (kind == "cpu" and number) or (number and not number.isdecimal()):
        raise UsageError(f"unknown device '{name}'", "devices: cpu, cuda, or cuda:1 for the second GPU")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            built = "" if torch.version.cuda else f" (the installed torch {torch.__version__} is built without CUDA)"
            raise EnvironmentProblem(
                f"device '{name}' was requested, and torch sees {count} CUDA GPUs{built}", "leave the device out for cpu"
            )
    return torch.device(name)


def move(graph_module: GraphModule, device: torch.device | str) -> GraphModule:
    """Let a captured graph compute on another device, in place: its tensors, and what its nodes create."""
    device = torch.device(device)

    def moved(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) else argument

    graph_module.to(device)
    for node in graph_module.graph.nodes:
        node.args = map_aggregate(node.args, moved)
        node.kwargs = map_aggregate(node.kwargs, moved)
    graph_module.recompile()
    return graph_module


@contextmanager
def placed(graph_module: GraphModule, device: torch.device) -> Iterator[None]:
    """Let a graph on the CPU compute on another device for a while."""
    move(graph_module, device)
    try:
        yield
    finally:
        move(graph_module, "cpu")


@contextmanager
def exact_products() -> Iterator[None]:
    """Without TF32, whose eleven bits would blur the float network that everything is measured against."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
