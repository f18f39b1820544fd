"""A quantization while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..progress import Progress
from .calibration.trajectories import Trajectories
from .config import QuantizeConfig
from .prepare import Prepared
from .running.processes import SharedWork


@dataclass(frozen=True)
class Run:
    """What every stage is given: the model and its plan, what it is calibrated on and compared with, where finished stages are kept."""

    prepared: Prepared
    data: Trajectories
    reference: Trajectories  # of other seeds
    work: SharedWork
    progress: Progress

    @property
    def config(self) -> QuantizeConfig:
        """What the user chose."""
        return self.prepared.config
