"""The GPU's clocks while something is timed: a GPU that changes them makes times that cannot be compared.

Read with nvidia-smi, which comes with the driver. Nothing is set: that takes rights, and other programs may be using the GPU.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_FIELDS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw")
# Boost steps are 15 MHz of some 2000: below this share it is one step of noise.
_STEADY = 0.02


@dataclass(frozen=True)
class Clocks:
    """At one moment: clocks in MHz, temperature in °C, power in W; None where the GPU does not tell."""

    sm_mhz: float | None
    max_sm_mhz: float | None
    memory_mhz: float | None
    temperature_c: float | None
    power_w: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def read_clocks() -> Clocks | None:
    """The first GPU's clocks now; None where there is no nvidia-smi, or it has no answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--id=0", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 - no input of a user's
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_clocks(answer.stdout)


def parse_clocks(text: str) -> Clocks | None:
    """One line of nvidia-smi's answer; what it does not know is "[N/A]" there."""
    values = [value.strip() for value in text.strip().partition("\n")[0].split(",")]
    return Clocks(*map(_number, values)) if len(values) == len(_FIELDS) else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def clock_notes(readings: Sequence[Clocks]) -> list[str]:
    """What a reader must know of the clocks during a timing: whether they stood, and at what."""
    seen = [reading.sm_mhz for reading in readings if reading.sm_mhz is not None]
    if not seen:
        return ["the GPU's clocks could not be read: times may not be comparable"]
    low, high = min(seen), max(seen)
    if high - low > _STEADY * high:
        return [f"the GPU's clock moved from {low:.0f} to {high:.0f} MHz while timing: fix it with nvidia-smi --lock-gpu-clocks={low:.0f}"]
    most = readings[0].max_sm_mhz
    return [f"the GPU's clock stood at {high:.0f} MHz" + (f" of {most:.0f}" if most else "")]
