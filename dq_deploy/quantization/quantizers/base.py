"""What every quantizer of activations is: values and their timesteps in, codes and scales out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import nn

from ...formats import Granularity, NumberFormat, ScaleSource, Scheme
from ...formats.tables import FOLDED
from .. import numerics
from ..config import QuantizeConfig
from .observation import Observation


def computed_scale(quantizer: ActivationQuantizer) -> dict[str, Any]:
    """A manifest's word on a scale that is computed: where it comes from, the block that shares one, and whether zero-points are too."""
    block = {"block": quantizer.format.block} if quantizer.format.block else {}
    return {"source": quantizer.source.value, **block, **({} if quantizer.symmetric else {"zero_points": True})}


class Quantized(NamedTuple):
    """A quantized activation: x ≈ codes · scale."""

    codes: torch.Tensor  # integers minus their zero-point, as floats, shaped as the activation
    scale: torch.Tensor  # [N·frames]: its sample's; or one per token, [N, ..., 1]


class Trained(NamedTuple):
    """A parameter [T, 1] that distillation moves, and its learning rate in units of the scales' rate."""

    parameter: nn.Parameter
    rate: float = 1.0


class ActivationQuantizer(nn.Module, ABC):
    """Quantizes x [N·frames, ...], each sample by its timestep [N]. No module remembers a timestep: it is an argument.

    ``dilation`` [C] along ``axis`` divides the activation first (Y = (X/s)(s∘W), DilateQuant eq. 10). ``timesteps`` [T] are those of the
    table rows that a checkpoint has of it.
    """

    kind: ClassVar[str]
    """Its name in plans, and in the graph of a checkpoint."""
    granularity: ClassVar[Granularity]
    source: ClassVar[ScaleSource]
    fixed: ClassVar[bool] = False
    """Whether its range is known beforehand: then nothing is divided, and nothing trained."""
    zero_points: ClassVar[bool] = True
    """Whether it can have zero-points other than 0."""
    counted: ClassVar[bool] = True
    """Whether calibration needs to know how many values lie where, and not their extremes alone."""
    frames: int = 1
    """Of a sample, in the batch, one after the other: they have their sample's scale."""
    boundaries: torch.Tensor
    dilation: torch.Tensor
    folded: torch.Tensor | None = None
    """The dilation [C] that it had before that was folded (graph/fold.py); a refit needs it."""

    def __init__(self, timesteps: torch.Tensor, fmt: NumberFormat, *, symmetric: bool, axis: int, channels: int) -> None:
        super().__init__()
        self.format, self.scheme = fmt, Scheme(self.granularity, self.source, symmetric)
        self.axis, self.table_rows = axis, len(timesteps)
        self.register_buffer("boundaries", numerics.midpoints(timesteps))
        self.register_buffer("dilation", torch.ones(channels))

    @property
    def bits(self) -> int:
        """Bits of its codes."""
        return self.format.bits

    @property
    def symmetric(self) -> bool:
        """Whether its zero-points are 0."""
        return self.scheme.symmetric

    @property
    def fitted_table_rows(self) -> int:
        """Rows that calibration fits: one for each calibrated timestep, or one for all."""
        return self.table_rows

    @property
    def divides(self) -> bool:
        """Whether its dilation is not 1 everywhere."""
        return bool((self.dilation != 1).any())

    def config(self) -> dict[str, Any]:
        """What, beside its tensors, makes this quantizer."""
        entry = {"kind": self.kind, **self.format.record()}
        folded = {"frames": self.frames} if self.frames != 1 else {}
        return entry | {"symmetric": self.symmetric, "axis": self.axis, "channels": len(self.dilation)} | folded

    @classmethod
    @abstractmethod
    def from_tensors(cls, name: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], timesteps: torch.Tensor,
                     gaps: int) -> Self:  # fmt: skip
        """The frozen quantizer that ``config`` and ``tensors`` (``<name>.<part>``: tables [T], a dilation [C]) were made of.

        Each gap between the T ``timesteps`` is divided into ``gaps`` parts (``table_rows.py``). Raises ArtifactError.
        """

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint stores of it when it is frozen, by part: tables [T], a dilation [C]."""

    def folded_tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint stores of a dilation [C] that was folded."""
        return {} if self.folded is None else {FOLDED: self.folded}

    def observation(self) -> Observation:
        """What calibration collects of it, as long as it has seen nothing."""
        return Observation.nothing(self.fitted_table_rows, self.dilation.device, counted=self.counted)

    @abstractmethod
    def calibrate(self, seen: Observation, config: QuantizeConfig) -> None:
        """Fit it to what its ``fitted_table_rows`` saw of the divided activation."""

    @abstractmethod
    def freeze(self) -> None:
        """Fix it to exactly what a checkpoint stores."""

    def trained(self) -> dict[str, Trained]:
        """What distillation moves, by its name in the module."""
        return {}

    @abstractmethod
    def scale_table(self) -> torch.Tensor:
        """Scales [T], fp32; where they are computed, those that calibration saw."""

    def table(self) -> torch.Tensor:
        """What its table says of the scales at each timestep [T], fp32: themselves, or what computed ones are multiplied with."""
        return self.scale_table()

    def zero_point_table(self) -> torch.Tensor:
        """Zero-points [T], int8."""
        return torch.zeros(self.table_rows, dtype=torch.int8)

    @abstractmethod
    def scales(self, x: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero-point for a divided activation x [N·frames, ...] at timesteps [N]: [N·frames], or as many dimensions as x has."""

    def divided(self, x: torch.Tensor) -> torch.Tensor:
        """What is rounded of x [N·frames, ...]: x over its dilation."""
        # Where the dilation is 1 (folded, or never there), multiplying by it would only cost time; on a GPU, so would asking.
        if self.dilation.device.type == "cpu" and not self.divides:
            return x
        return x * numerics.per_channel(1 / self.dilation, x, self.axis)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> Quantized:
        """Quantize x [N·frames, ...], each sample by its timestep [N]."""
        x = self.divided(x)
        scale, zero_point = self.scales(x, timestep)
        codes = numerics.quantize(x, numerics.per_sample(1 / scale, x), numerics.per_sample(zero_point, x), self.format)
        return Quantized(codes, scale)
