"""Whether a checkpoint does on samples that it was not calibrated on what it does on those that it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PARTED_DB = 5.0
"""At 16 and more calibration samples the largest difference seen was 3.3 dB, of four held-out seeds at any of 20 timesteps; at 2 to 6 it
was up to 6.0 (built-in DiT) and 14.5 (a super-resolution UNet)."""


@dataclass(frozen=True)
class Parted:
    """The timestep at which calibration samples are the furthest ahead of held-out ones, and the SNR in dB of both."""

    timestep: float
    calibration_db: float
    held_out_db: float

    def message(self, options: Mapping[str, Any]) -> str:
        """What it is and what to do, for a checkpoint of these options."""
        count = options.get("calibration_samples", 0)
        return (
            f"at timestep {self.timestep:g} the samples calibrated on have {self.calibration_db:.1f} dB and held-out ones "
            f"{self.held_out_db:.1f} dB; calibrate on more than {count}: --calibration-samples {max(64, 2 * count)}, of as many different "
            "conditions as the model will see"
        )


def parted(snr_db: Mapping[str, Sequence[float]], timesteps: Sequence[float]) -> Parted | None:
    """Where a checkpoint's samples part by more than chance makes them; None where they do not, or were not measured."""
    pairs = zip(timesteps, snr_db.get("calibration_samples", ()), snr_db["after_distillation"], strict=False)
    found = [Parted(*row) for row in pairs if row[1] - row[2] >= PARTED_DB]
    return max(found, key=lambda row: row.calibration_db - row.held_out_db, default=None)
