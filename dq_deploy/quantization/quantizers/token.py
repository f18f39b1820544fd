"""A scale for each token, and a zero-point where values lean to one side, computed from its values when the network runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from ...decibels import ratio_db
from ...formats import Granularity, NumberFormat, ScaleSource
from ...formats.tables import CLIPPING_RATIO, DILATION
from .. import numerics
from ..config import QuantizeConfig
from ..integrity import check_token_quantizer, read_format
from ..table_rows import between
from .base import ActivationQuantizer, Trained
from .observation import Observation
from .ranges import search_tables

LEAST_LARGEST = 1e-12
"""What max|x| of a token counts as at the least: of one that is zero all over, 1/s must be a number."""
ZERO_POINT_LEAD_DB = 1.0
"""A zero-point costs a reduction, and a product with the weights' sums: it must lower the power of the rounding noise by so much."""


@dataclass(frozen=True)
class TokenObservation(Observation):
    """Of values divided by their token's largest magnitude; and of each row the tokens, and the sums of their squared largest magnitudes
    and of their squared half-ranges.
    """  # noqa: D205  a definition, not a summary

    tokens: torch.Tensor  # [R, 3], fp64

    @classmethod
    def nothing(cls, table_rows: int, device: torch.device, *, counted: bool = True) -> Self:
        """As ``Observation`` says."""
        empty = Observation.nothing(table_rows, device, counted=counted)
        return cls(empty.low, empty.high, empty.counts, torch.zeros(table_rows, 3, device=device, dtype=torch.float64))

    def add(self, values: torch.Tensor, row: int) -> None:
        """See tokens [..., C] in ``row`` too."""
        largest = _largest(values)
        self.tokens[row, 0] += largest.numel()
        self.tokens[row, 1] += largest.double().square().sum()
        self.tokens[row, 2] += _half_range(values)[1].double().square().sum()
        super().add(values.abs() / largest, row)

    def typical(self) -> torch.Tensor:
        """Root mean square [R] of the tokens' largest magnitudes."""
        return (self.tokens[:, 1] / self.tokens[:, 0]).sqrt().float()

    def gain_db(self) -> float:
        """By how much zero-points lower the power of the rounding noise, which steps' squares have."""
        _, symmetric, shifted = self.tokens.sum(dim=0).tolist()
        return ratio_db(symmetric, shifted)


class TokenQuantizer(ActivationQuantizer):
    """s = α_t · max|x| / largest code for each token x, the last axis. Of a rank-2 input, a sample's only row is its token.

    Where the values lean to one side and it may (``scheme``), h stands in the place of max|x|, with a zero-point z = −round(c / h · largest
    code): a token's range, widened to hold 0, is c ± h. The clipping ratios α [T] (1: nothing is clipped) bring both ends nearer to 0. They
    are all that is trained; calibration finds them, and whether there are zero-points (ViDiT-Q, arXiv 2406.02540, has them everywhere).
    """

    kind = "per-token"
    granularity = Granularity.TOKEN
    source = ScaleSource.COMPUTED
    log_ratio: torch.Tensor
    shifted: torch.Tensor
    frozen_ratio: torch.Tensor | None
    typical: torch.Tensor | None

    def __init__(self, timesteps: torch.Tensor, fmt: NumberFormat, *, symmetric: bool, axis: int, channels: int) -> None:
        if axis != -1 or (fmt.floating and not symmetric):
            raise ValueError(f"a token is the last axis, and {fmt.name} has no zero-points (got axis {axis}, symmetric {symmetric})")
        super().__init__(timesteps, fmt, symmetric=symmetric, axis=axis, channels=channels)
        self.log_ratio = nn.Parameter(torch.zeros(self.table_rows, 1))
        self.register_buffer("shifted", torch.tensor(False))
        self.register_buffer("frozen_ratio", None, persistent=False)
        self.register_buffer("typical", None, persistent=False)

    @classmethod
    def from_tensors(cls, name: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], timesteps: torch.Tensor,
                     gaps: int) -> Self:  # fmt: skip
        """As ``ActivationQuantizer`` says."""
        options = {key: config[key] for key in ("symmetric", "axis", "channels")}
        made = cls(between(timesteps, gaps).float(), read_format(name, config), **options)
        check_token_quantizer(name, tensors, len(timesteps), channels=len(made.dilation))
        made.dilation.copy_(tensors[f"{name}.{DILATION}"])
        made.shifted.fill_(not made.scheme.symmetric)
        made._fix(between(tensors[f"{name}.{CLIPPING_RATIO}"], gaps).float())
        return made

    def tensors(self) -> dict[str, torch.Tensor]:
        """As ``ActivationQuantizer`` says."""
        return {CLIPPING_RATIO: self.table(), DILATION: self.dilation} | self.folded_tensors()

    @property
    def symmetric(self) -> bool:
        """As ``ActivationQuantizer`` says; before it is calibrated, True."""
        return not bool(self.shifted)

    def observation(self) -> TokenObservation:
        """As ``ActivationQuantizer`` says."""
        return TokenObservation.nothing(self.fitted_table_rows, self.dilation.device)

    @torch.no_grad()
    def calibrate(self, seen: Observation, config: QuantizeConfig) -> None:
        """Clip a token's values by what serves all tokens of a row best, each divided by its largest."""
        assert isinstance(seen, TokenObservation)
        rule, percentile = config.initial_range, config.percentile
        relative, _ = search_tables(seen, self.format, symmetric=True, rule=rule, percentile=percentile)
        ratio = (relative * self.format.largest).clamp(max=1.0)
        self.log_ratio[:] = ratio.log()[:, None]
        self.typical = seen.typical()
        self.shifted.fill_(not self.scheme.symmetric and seen.gain_db() >= ZERO_POINT_LEAD_DB)

    @torch.no_grad()
    def table(self) -> torch.Tensor:
        """Clipping ratios α [T]."""
        return (self.log_ratio[:, 0].exp() if self.frozen_ratio is None else self.frozen_ratio).clone()

    @torch.no_grad()
    def scale_table(self) -> torch.Tensor:
        """Scales [T] of tokens as large as those that calibration saw; without a calibration, of tokens whose largest value is 1."""
        relative = self.table() / self.format.largest
        return relative if self.typical is None else relative * self.typical.clamp(min=LEAST_LARGEST)

    def freeze(self) -> None:
        """As ``ActivationQuantizer`` says."""
        self._fix(self.table())

    def _fix(self, ratio: torch.Tensor) -> None:
        self.requires_grad_(False)
        self.frozen_ratio = ratio

    def trained(self) -> dict[str, Trained]:
        """Logarithms of the clipping ratios."""
        return {"log_ratio": Trained(self.log_ratio)}  # type: ignore[arg-type]  # a parameter, declared as a tensor

    def scales(self, x: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero-point [N, ..., 1] of each token of x [N, ..., C]; no gradient passes through a token's range."""
        index = numerics.select_table_rows(timestep, self.boundaries)
        ratio = F.embedding(index, self.log_ratio)[:, 0].exp() if self.frozen_ratio is None else self.frozen_ratio[index]
        relative = numerics.per_sample(ratio / self.format.largest, x)
        if self.symmetric:
            scale = _largest(x.detach()) * relative
            return scale, torch.zeros_like(scale)
        centre, half = _half_range(x.detach())
        return half * relative, (centre / half * -self.format.largest).round()


def _largest(tokens: torch.Tensor) -> torch.Tensor:
    """max|x| [..., 1] of tokens [..., C]."""
    return tokens.abs().amax(dim=-1, keepdim=True).clamp(min=LEAST_LARGEST)


def _half_range(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre and half [..., 1] of the range of tokens [..., C] that holds 0 too."""
    low, high = tokens.amin(dim=-1, keepdim=True).clamp(max=0), tokens.amax(dim=-1, keepdim=True).clamp(min=0)
    return (high + low) * 0.5, ((high - low) * 0.5).clamp(min=LEAST_LARGEST)
