from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from dq_deploy.artifacts import Artifact
from dq_deploy.exporters import export
from dq_deploy.formats import ScaleSource
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.quantization.table_rows import parts
from tests.tiny import SHAPE, change_tensors, run, snr_db


def _spread(tensors: dict[str, torch.Tensor]) -> None:
    """Rows that differ threefold from one to the next, beginning well below what the activations need."""
    for name, table in list(tensors.items()):
        if name.endswith(".scale") and f"{name[:-6]}.zero_point" in tensors and "matmul_1.lhs" not in name:
            tensors[name] = table.mean() * torch.tensor([0.3, 0.9, 2.7, 8.1])


@pytest.fixture(scope="module")
def spread(plain_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Artifact]:
    folder = tmp_path_factory.mktemp("spread")
    changed = change_tensors(Path(shutil.copytree(plain_checkpoint.artifact.path, folder / "checkpoint")), _spread)
    return load_checkpoint(changed), export(changed, folder / "bundle", target="qdq", dtype="fp32")


def test_a_mixed_batch_is_what_its_samples_give_alone(spread: tuple[Checkpoint, Artifact]) -> None:
    checkpoint, bundle = spread
    for quantizer in checkpoint.quantizers.values():
        scale = quantizer.scale_table()[:: parts(len(checkpoint.timesteps))]
        assert quantizer.source is not ScaleSource.TABLE or float((scale[1:] / scale[:-1]).min()) >= 2
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([750.0, 0.0, 500.0, 260.0, 0.0])
    mixed = run(bundle, x, t)
    alone = torch.cat([run(bundle, x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    with torch.no_grad():
        assert all(snr_db(a, m) > 60 for a, m in zip(alone, mixed, strict=True))
        assert all(snr_db(a, m) > 60 for a, m in zip(checkpoint.model(x, t), mixed, strict=True))
    permuted = run(bundle, x, t[torch.tensor([1, 2, 0, 4, 3])])
    assert all(snr_db(a, p) < 30 for a, p in zip(alone, permuted, strict=True))
