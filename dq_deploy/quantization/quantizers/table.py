"""A scale and a zero-point for each calibrated timestep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from ...formats import Granularity, NumberFormat, ScaleSource
from ...formats.tables import DILATION, SCALE, ZERO_POINT
from .. import numerics
from ..config import QuantizeConfig
from ..integrity import check_quantizer, read_format
from ..table_rows import between, between_scales
from .base import ActivationQuantizer, Trained
from .observation import Observation
from .ranges import search_tables

_ZERO_POINT_RATE = 50.0  # zero-points move in units of codes, log-scales in units of e: their step is this much longer
_UNNAMED = ("per-timestep", "static", "probabilities")  # by schema 1, which tells the last one by ``fixed``


class TableQuantizer(ActivationQuantizer):
    """Temporal Parallel Quantizer (DilateQuant §4.2): tables of one (scale, zero_point) per calibrated timestep."""

    kind = "per-timestep"
    granularity = Granularity.TENSOR
    source: ClassVar[ScaleSource] = ScaleSource.TABLE
    log_scale: torch.Tensor
    zero_point: torch.Tensor
    frozen_scale: torch.Tensor | None

    def __init__(self, timesteps: torch.Tensor, fmt: NumberFormat, *, symmetric: bool, axis: int, channels: int,
                 table_rows: int | None = None) -> None:  # fmt: skip
        super().__init__(timesteps, fmt, symmetric=symmetric, axis=axis, channels=channels)
        table_rows = table_rows or self.table_rows
        # The logarithm is what is trained: a scale stays positive, and steps are relative to it.
        self.log_scale = nn.Parameter(torch.zeros(table_rows, 1))
        self.zero_point = nn.Parameter(torch.zeros(table_rows, 1), requires_grad=not symmetric)
        self.register_buffer("frozen_scale", None, persistent=False)  # a buffer, to follow the module to another device

    @property
    def fitted_table_rows(self) -> int:
        """As ``ActivationQuantizer`` says."""
        return len(self.log_scale)

    def config(self) -> dict[str, Any]:
        """As ``ActivationQuantizer`` says; schema 1 names no kind."""
        entry = super().config() | {"fixed": self.fixed}
        return {key: value for key, value in entry.items() if key != "kind" or value not in _UNNAMED}

    @classmethod
    def from_tensors(cls, name: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], timesteps: torch.Tensor,
                     gaps: int) -> Self:  # fmt: skip
        """As ``ActivationQuantizer`` says."""
        options = {key: value for key, value in config.items() if key not in ("kind", "fixed", "bits", "format", "frames")}
        made = cls(between(timesteps, gaps).float(), read_format(name, config), **options)
        made.frames = int(config.get("frames", 1))
        if made.frames < 1:
            raise ValueError(f"quantizer '{name}' has {made.frames} frames of a sample")
        check_quantizer(name, tensors, len(timesteps), made.format, channels=len(made.dilation))
        made.dilation.copy_(tensors[f"{name}.{DILATION}"])
        scale = between_scales(tensors[f"{name}.{SCALE}"], gaps)
        shift = torch.zeros_like(scale) if made.format.floating else between(tensors[f"{name}.{ZERO_POINT}"], gaps).round()
        made.set_tables(scale, shift.float())
        made.freeze()
        made.frozen_scale = scale
        return made

    def tensors(self) -> dict[str, torch.Tensor]:
        """As ``ActivationQuantizer`` says."""
        shift = {} if self.format.floating else {ZERO_POINT: self.zero_point_table()}
        return {SCALE: self.scale_table(), **shift, DILATION: self.dilation} | self.folded_tensors()

    @torch.no_grad()
    def set_tables(self, scale: torch.Tensor, zero_point: torch.Tensor) -> None:
        """Set the tables from scale [R] > 0 and zero_point [R], R being the ``fitted_table_rows``."""
        self.log_scale[:] = scale.double().log().float().reshape(-1, 1)
        self.zero_point[:] = zero_point.reshape(-1, 1)

    def calibrate(self, seen: Observation, config: QuantizeConfig) -> None:
        """As ``ActivationQuantizer`` says."""
        rule, percentile = config.initial_range, config.percentile
        self.set_tables(*search_tables(seen, self.format, symmetric=self.symmetric, rule=rule, percentile=percentile))

    @torch.no_grad()
    def scale_table(self) -> torch.Tensor:
        """Scales [T], fp32."""
        scale = self._constant()
        scale = self.log_scale[:, 0].exp() if scale is None else scale
        return scale.expand(self.table_rows).clone()

    @torch.no_grad()
    def zero_point_table(self) -> torch.Tensor:
        """Zero-points [T], int8."""
        qmin, qmax = self.format.code_range()
        return self.zero_point[:, 0].round().clamp(qmin, qmax).to(torch.int8).expand(self.table_rows).clone()

    def _constant(self) -> torch.Tensor | None:
        """Scales that no training moves, where there are any."""
        return self.frozen_scale

    def freeze(self) -> None:
        """As ``ActivationQuantizer`` says."""
        scale, zero_point = self.scale_table(), self.zero_point_table()
        self.requires_grad_(False)
        self.frozen_scale = scale
        self.zero_point.data = zero_point.float().reshape(-1, 1)

    def trained(self) -> dict[str, Trained]:
        """Log-scales and, unless symmetric, zero-points."""
        found = {"log_scale": Trained(self.log_scale)}  # type: ignore[arg-type]  # a parameter, declared as a tensor
        return found if self.symmetric else found | {"zero_point": Trained(self.zero_point, _ZERO_POINT_RATE)}  # type: ignore[arg-type]

    def _index(self, timestep: torch.Tensor) -> torch.Tensor:
        """The table row [N] of each timestep [N]."""
        return numerics.select_table_rows(timestep, self.boundaries)

    def scales(self, x: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002  # whatever it is
        """As ``ActivationQuantizer`` says."""
        return self.selected(timestep if self.frames == 1 else timestep.repeat_interleave(self.frames))

    def selected(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero-point [N] for timesteps [N]."""
        index = self._index(timestep)
        zero_point = F.embedding(index, self.zero_point)[:, 0]
        scale = self._constant()
        if scale is not None:
            return scale[index], zero_point
        return F.embedding(index, self.log_scale)[:, 0].exp(), zero_point
