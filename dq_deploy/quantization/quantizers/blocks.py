"""A scale for each block of 16 channels, computed from its values when the network runs (NVFP4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch

from ...formats import FP4, Granularity, NumberFormat, ScaleSource
from ...formats.tables import DILATION, GLOBAL_SCALE
from .. import blocks
from ..config import QuantizeConfig
from ..integrity import check_block_quantizer, read_format
from ..table_rows import between
from .base import ActivationQuantizer
from .observation import Observation


class BlockQuantizer(ActivationQuantizer):
    """FP4 codes of x [..., C], each 16 of the last axis with a scale g · s_b of their own (``quantization/blocks.py``).

    The constant g is all that is calibrated, nothing is trained. It is one for all timesteps: what it decides is only where the range of
    the blocks' scales lies (docs/decisions/nvfp4.md).
    """

    kind = "blocks"
    granularity = Granularity.BLOCK
    source = ScaleSource.COMPUTED
    zero_points: ClassVar[bool] = False
    counted: ClassVar[bool] = False
    global_scale: torch.Tensor

    def __init__(self, timesteps: torch.Tensor, fmt: NumberFormat, *, symmetric: bool, axis: int, channels: int) -> None:
        if fmt is not FP4 or axis != -1 or not symmetric or channels % blocks.BLOCK:
            raise ValueError(
                f"blocks are of {blocks.BLOCK} {FP4.name} codes along the last axis, symmetric (got {fmt.name}, axis {axis}, "
                f"symmetric {symmetric}, {channels} channels)"
            )
        super().__init__(timesteps, fmt, symmetric=symmetric, axis=axis, channels=channels)
        self.register_buffer("global_scale", torch.ones(()))

    @classmethod
    def from_tensors(cls, name: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], timesteps: torch.Tensor,
                     gaps: int) -> Self:  # fmt: skip
        """As ``ActivationQuantizer`` says."""
        options = {key: config[key] for key in ("symmetric", "axis", "channels")}
        made = cls(between(timesteps, gaps).float(), read_format(name, config), **options)
        check_block_quantizer(name, tensors, channels=len(made.dilation))
        made.dilation.copy_(tensors[f"{name}.{DILATION}"])
        made.global_scale.copy_(tensors[f"{name}.{GLOBAL_SCALE}"])
        return made

    def tensors(self) -> dict[str, torch.Tensor]:
        """As ``ActivationQuantizer`` says."""
        return {GLOBAL_SCALE: self.global_scale, DILATION: self.dilation}

    @property
    def fitted_table_rows(self) -> int:
        """As ``ActivationQuantizer`` says: one for all."""
        return 1

    def calibrate(self, seen: Observation, config: QuantizeConfig) -> None:  # noqa: ARG002  # no range is a better one
        """As ``ActivationQuantizer`` says."""
        largest = max(float(-seen.low.amin()), float(seen.high.amax()), 0.0)
        self.global_scale.fill_(blocks.global_scale(largest))

    def freeze(self) -> None:
        """As ``ActivationQuantizer`` says: it is fixed."""

    @torch.no_grad()
    def scale_table(self) -> torch.Tensor:
        """The constant g for each timestep [T]."""
        return self.global_scale.expand(self.table_rows).clone()

    def scales(self, x: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002  # the same at all
        """Scale and zero-point of each element of x [N, ..., C], shaped as x; no gradient passes through a block's largest value."""
        scale = blocks.by_element(blocks.block_scales(x.detach(), self.global_scale) * self.global_scale)
        return scale, torch.zeros_like(scale)
