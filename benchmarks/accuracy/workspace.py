"""What is kept between runs on one machine and never committed: checkpoints, pictures, trajectories, features."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .settings import Cell, Settings, model_name

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Workspace:
    """Folders of one model's weights. ``identity`` is the hash of all that decides a cell's checkpoint."""

    root: Path
    model: str
    model_sha256: str

    @property
    def model_folder(self) -> Path:
        """Everything of this model."""
        return self.root / f"{model_name(self.model)}-{self.model_sha256[:8]}"

    def float_folder(self, settings: Settings) -> Path:
        """Pictures and trajectories of the float model."""
        return self.model_folder / f"float-{settings.steps}"

    def cell_folder(self, cell: Cell, identity: str) -> Path:
        """Checkpoint and pictures of a cell."""
        return self.model_folder / cell.preset / f"{cell.method}-{cell.seed}-{identity[:12]}"

    @property
    def shared(self) -> Path:
        """What all models use: the Inception network, features of real pictures."""
        return self.root / "shared"


def load_array(file: Path) -> Array | None:
    """A stored array, None where there is none."""
    if not file.is_file():
        return None
    found: Array = np.load(file, allow_pickle=False)
    return found


def save_array(file: Path, array: Array) -> None:
    """Store an array; two processes that store the same one do not disturb each other."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, suffix=".npy")
    with os.fdopen(descriptor, "wb") as stream:
        np.save(stream, array)
    Path(name).replace(file)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock beside ``file``: of two processes that need it, one makes it and the other waits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
