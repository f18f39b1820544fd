"""How library code reports progress without printing: it is handed a ``Progress``, and by default a silent one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Reports progress within a task."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """``steps`` more steps are done; ``note`` is shown beside the bar."""


class Progress(Protocol):
    """Starts tasks."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Start a task of ``total`` steps; it ends with the context."""


def _ignore(steps: int = 1, note: str = "") -> None:  # noqa: ARG001  the protocol's arguments
    return


@contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:  # noqa: ARG001  the protocol's arguments
    """The Progress that shows nothing."""
    yield _ignore
