"""How library code reports progress without printing: it is handed a ``Progress``, and by default a silent one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Reports ``steps`` more steps done, with a short note to show beside the bar."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


class Progress(Protocol):
    """Starts a task of ``total`` steps; the context ends with it."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Advance]: ...


def _ignore(steps: int = 1, note: str = "") -> None:
    return


@contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:
    """The Progress that shows nothing."""
    yield _ignore
