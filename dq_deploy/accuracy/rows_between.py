"""Rows between the calibrated ones: layers and pictures are compared at calibrated timesteps, which never select these."""

from __future__ import annotations

import numpy as np

from ..artifacts import Artifact
from ..artifacts.scale_tables import read_rows
from ..quantization.checkpoint import Checkpoint

_SCALE_TOLERANCE = 1e-6  # relative: interpolated on another machine, a scale may be rounded to its neighbour in fp32


def row_failures(bundle: Artifact, checkpoint: Checkpoint) -> list[str]:
    """What a bundle's tables hold between calibrated timesteps that its checkpoint does not; nothing for an export without such rows."""
    failures = []
    rows, quantizers = checkpoint.rows.numpy(), checkpoint.quantizers
    for name, (scale, zero_point) in read_rows(bundle).items():
        if (quantizer := quantizers.get(name)) is None:  # the comparison of layers has more to say of it
            continue
        wrong = np.zeros(len(rows), dtype=bool)
        if scale.size == len(rows):
            wrong |= ~np.isclose(scale, quantizer.scale_table().numpy(), rtol=_SCALE_TOLERANCE, atol=0)
        if zero_point.size == len(rows):
            wrong |= zero_point != quantizer.zero_point_table().numpy()
        if wrong.any():
            where = ", ".join(f"{t:g}" for t in rows[wrong][:4])
            failures.append(f"table {name}: {wrong.sum()} of {len(rows)} rows are not the checkpoint's, first at timestep {where}")
    return failures
