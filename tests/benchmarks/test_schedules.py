"""Fewer rows between the calibrated ones, down to what a checkpoint stores."""

from __future__ import annotations

import torch

from benchmarks.schedules.study import WAYS
from benchmarks.schedules.table_rows import halve_rows
from dq_deploy.artifacts.reading import read_tensors
from dq_deploy.formats import ScaleSource
from dq_deploy.quantization.checkpoint import MODEL, Checkpoint, load_checkpoint
from tests.tiny import SHAPE


def test_halved_to_one_part_the_stored_rows_are_left(plain_checkpoint: Checkpoint) -> None:
    checkpoint = load_checkpoint(plain_checkpoint.artifact.path)
    x, t = torch.randn(2, *SHAPE), checkpoint.timesteps[:2]
    with torch.no_grad():
        before = checkpoint.model(x, t)
        rows = checkpoint.table_timesteps
        for _ in WAYS[1:]:
            rows = halve_rows(checkpoint.model, rows)
        assert torch.equal(rows, checkpoint.timesteps)
        assert torch.equal(checkpoint.model(x, t), before)
    stored = read_tensors(checkpoint.artifact.file(MODEL))
    for name, quantizer in checkpoint.quantizers.items():
        if quantizer.source is ScaleSource.COMPUTED:
            continue
        assert torch.equal(quantizer.scale_table(), stored[f"{name}.scale"])
        nearest, _ = quantizer.selected(rows[:1] + 0.4 * (rows[1] - rows[0]))
        assert torch.equal(nearest, stored[f"{name}.scale"][:1])
