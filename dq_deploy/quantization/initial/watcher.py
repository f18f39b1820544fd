"""Runs the float graph, and shows what quantizers read as soon as it has been computed: nothing of it need be kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ...errors import ArtifactError
from .. import numerics
from .group_setter import Group


class Watcher(Interpreter, ABC):
    """Runs the float graph, and hands every value that a quantizer reads on as soon as it has been computed."""

    def __init__(self, module: GraphModule, groups: Mapping[str, list[Group]], advance: Any) -> None:
        super().__init__(module)
        self.groups, self.advance = groups, advance

    def run_node(self, n: Node) -> Any:
        """As ``Interpreter`` says."""
        value = super().run_node(n)
        for group in self.groups.get(n.name, []):
            self.check(n.name, value, group.quantizer.frames)
            self.watch(group, value)
            self.advance(1, group.name)
        return value

    @abstractmethod
    def watch(self, group: Group, value: torch.Tensor) -> None:
        """``group`` reads ``value`` [N·frames, ...]."""

    @abstractmethod
    def where(self, sample: int) -> tuple[float, int]:
        """Timestep and calibration sample of a sample of the batch."""

    def check(self, name: str, value: torch.Tensor, frames: int) -> None:
        """Raise ArtifactError where ``value`` [N·frames, ...] is not finite."""
        if bad := numerics.not_finite(value):
            timestep, sample = self.where(bad[0] // frames)
            raise ArtifactError(f"activation '{name}' has NaN or Inf at timestep {timestep:g}, seed {sample}")
