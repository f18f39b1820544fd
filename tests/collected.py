"""What is imported when the tests are collected lives as long as the worker: the garbage collector need not look through it."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """A twelfth of a worker's time went into that."""
    gc.collect()
    gc.freeze()
