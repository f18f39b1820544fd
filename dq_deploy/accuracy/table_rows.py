"""Rows between the calibrated ones: layers and pictures are compared at calibrated timesteps, which never select these."""

from __future__ import annotations

import numpy as np

from ..artifacts import Artifact
from ..artifacts.scale_tables import read_table_rows
from ..quantization.checkpoint import Checkpoint

_SCALE_TOLERANCE = 1e-6  # relative: interpolated on another machine, a scale may be rounded to its neighbour in fp32


def table_row_failures(bundle: Artifact, checkpoint: Checkpoint) -> list[str]:
    """What a bundle's tables hold between calibrated timesteps that its checkpoint does not; nothing for an export without such rows."""
    failures = []
    timesteps, quantizers = checkpoint.table_timesteps.numpy(), checkpoint.quantizers
    for name, (scale, zero_point) in read_table_rows(bundle).items():
        if (quantizer := quantizers.get(name)) is None:  # the comparison of layers has more to say of it
            continue
        wrong = np.zeros(len(timesteps), dtype=bool)
        if scale.size == len(timesteps):
            wrong |= ~np.isclose(scale, quantizer.table().numpy(), rtol=_SCALE_TOLERANCE, atol=0)
        if zero_point.size == len(timesteps):
            wrong |= zero_point != quantizer.zero_point_table().numpy()
        if wrong.any():
            where = ", ".join(f"{t:g}" for t in timesteps[wrong][:4])
            failures.append(f"table {name}: {wrong.sum()} of {len(timesteps)} rows are not the checkpoint's, first at timestep {where}")
    return failures
