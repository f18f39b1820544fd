"""Shared test set-up."""

from __future__ import annotations

import signal

import pytest

pytest_plugins = [
    "tests.browser",
    "tests.bundles",
    "tests.captures",
    "tests.collected",
    "tests.command_line",
    "tests.disks",
    "tests.flow",
    "tests.sized",
    "tests.skeletons",
    "tests.tiny",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--nightly`` runs what ``make test`` leaves out, ``--families`` every family of denoisers (``make families``)."""
    parser.addoption("--nightly", action="store_true", help="run the long tests too (make nightly)")
    parser.addoption("--families", action="store_true", help="run every family of tests/families, not only the quick ones")
    parser.addoption("--family-rows", metavar="DIR", help="write what became of each family to DIR, for docs/families.md")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked ``nightly`` or ``families`` unless they are asked for, and skip those marked ``gpu`` where there is none."""
    names = [name for name in ("nightly", "families") if not config.getoption(f"--{name}")]
    left_out = [item for item in items if any(map(item.get_closest_marker, names))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
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
