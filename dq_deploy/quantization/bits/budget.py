"""A budget as people write it: "1.6MB", "0.18x" of the float32 weights, or "32dB"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self

from ...errors import UsageError

FLOAT_BYTES = 4
"""Of a float32 weight, which shares of the weights are shares of."""
_UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class WeightBudget:
    """``limit`` bytes of weights ("size"), times the float32 weights ("fraction"), or dB of predicted SNR to reach ("snr")."""

    kind: Literal["size", "fraction", "snr"]
    limit: float

    @classmethod
    def parse(cls, text: str, option: str, *, snr: bool) -> Self:
        """From the text given for ``option``; ``snr``: whether that may be an SNR. Raises UsageError."""
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)", text.strip())
        value, unit = (float(match[1]), match[2]) if match else (0.0, "")
        if value > 0 and unit in _UNITS:
            return cls("size", value * _UNITS[unit])
        if value > 0 and (unit == "x" or (unit == "dB" and snr)):
            return cls("fraction" if unit == "x" else "snr", value)
        known = ["a size (1.6MB)", "a share of the float32 weights (0.18x)", *(["an SNR (32dB)"] if snr else [])]
        raise UsageError(f"{option} takes {', '.join(known[:-1])} or {known[-1]}, not '{text}'")

    def bytes_of(self, parameters: int) -> float:
        """The bytes of a size, or of a share of so many float32 weights."""
        return self.limit * FLOAT_BYTES * parameters if self.kind == "fraction" else self.limit
