"""Values that pass between blocks, kept on disk: memory holds one block and one batch, whatever the number of samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import torch


class Values(Protocol):
    """Named tensors [S, ...], written and read by samples."""

    def __contains__(self, name: str) -> bool: ...

    def write(self, name: str, start: int, values: torch.Tensor) -> None:
        """Store ``values`` [n, ...] as the samples from ``start`` on; the first call decides shape and type of the samples."""

    def read(self, name: str, index: torch.Tensor) -> torch.Tensor:
        """Samples ``index`` [N] of a tensor, in a tensor of their own on the CPU."""

    def drop(self, name: str) -> None:
        """Forget a tensor."""


class _Entry(NamedTuple):
    """An open file of samples, each of one shape and type."""

    handle: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    sample_bytes: int


class ValueCache:
    """Named tensors [S, ...], one file each, read and written sample by sample.

    Plain reads into tensors of our own, no memory map: mapped pages would count as this process's memory until the system wants them back.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._entries: dict[str, _Entry] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def write(self, name: str, start: int, values: torch.Tensor) -> None:
        """Store ``values`` [n, ...] as the samples from ``start`` on; the first call decides shape and type of the samples."""
        values = values.detach().cpu().contiguous()
        if name not in self._entries:
            handle = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            sample_bytes = values[0].numel() * values.element_size()
            self._entries[name] = _Entry(handle, tuple(values.shape[1:]), values.dtype, sample_bytes)
        entry = self._entries[name]
        rest, offset = _bytes(values), start * entry.sample_bytes
        while rest:
            done = os.pwrite(entry.handle, rest, offset)
            rest, offset = rest[done:], offset + done

    def read(self, name: str, index: torch.Tensor) -> torch.Tensor:
        """Samples ``index`` [N] of a tensor, in a tensor of their own on the CPU."""
        entry = self._entries[name]
        result = torch.empty(len(index), *entry.shape, dtype=entry.dtype)
        view = _bytes(result)
        for position, sample, count in _runs(index.tolist()):
            rest, offset = view[position * entry.sample_bytes : (position + count) * entry.sample_bytes], sample * entry.sample_bytes
            while rest:
                done = os.preadv(entry.handle, [rest], offset)
                if not done:
                    raise OSError(f"{self._path(name)} ends before sample {sample + count}")
                rest, offset = rest[done:], offset + done
        return result

    def drop(self, name: str) -> None:
        """Forget a tensor and give back its disk."""
        os.close(self._entries.pop(name).handle)
        self._path(name).unlink()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.rows"


def _bytes(values: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return values.reshape(-1).view(torch.uint8).numpy().data


def _runs(samples: list[int]) -> Iterator[tuple[int, int, int]]:
    """(position, first sample, count) of the stretches of consecutive samples: one read each."""
    start = 0
    for position in range(1, len(samples) + 1):
        if position == len(samples) or samples[position] != samples[position - 1] + 1:
            yield start, samples[start], position - start
            start = position
