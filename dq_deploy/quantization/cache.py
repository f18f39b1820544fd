"""Values that pass between blocks, kept on disk: memory holds one block and one batch, whatever the number of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch


class ValueCache:
    """Named tensors [S, ...], one memory-mapped file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._arrays: dict[str, np.memmap] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def write(self, name: str, start: int, values: torch.Tensor, total: int) -> None:
        """Store rows [start, start + len(values)) of a tensor with ``total`` rows."""
        if name not in self._arrays:
            shape = (total, *values.shape[1:])
            dtype = values.numpy().dtype
            self._arrays[name] = np.lib.format.open_memmap(self._path(name), mode="w+", dtype=dtype, shape=shape)
        self._arrays[name][start : start + len(values)] = values.numpy()

    def read(self, name: str, index: torch.Tensor) -> torch.Tensor:
        """Rows ``index`` of a tensor, copied into memory."""
        return torch.from_numpy(self._arrays[name][index.numpy()])

    def drop(self, name: str) -> None:
        """Forget a tensor and give back its disk."""
        del self._arrays[name]
        self._path(name).unlink()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"
