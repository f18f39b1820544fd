"""Artefacts that many tests read are made once for all workers of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name``, which the first worker that asks for it makes: ``make`` writes to the path that it is given. Only read it."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    made, finished = root / "shared" / name, root / "shared" / f"{name}.finished"
    made.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "shared" / f"{name}.lock"):
        if not finished.exists():
            make(made)
            finished.touch()
    return made
