"""Shared test set-up."""

from __future__ import annotations

import signal

import pytest

pytest_plugins = ["tests.browser", "tests.bundles", "tests.command_line", "tests.flow", "tests.tiny"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` on a machine without a CUDA GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))


def pytest_configure() -> None:
    """Listen to SIGINT again: a job that a shell put into the background ignores it, and so would every child that a test interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
