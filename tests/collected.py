"""What is imported when the tests are collected lives as long as the worker: the garbage collector need not look through it."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Full collections were 7% of the time of two files of tests that quantize."""
    gc.collect()
    gc.freeze()
