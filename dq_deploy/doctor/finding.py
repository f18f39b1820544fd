"""One thing that was looked at."""

from __future__ import annotations

from typing import Literal

from ..artifacts.records import Record

State = Literal["ok", "absent", "note", "wrong"]


class Finding(Record):
    """``absent`` is something optional that is not there, ``note`` something to know, ``wrong`` something that will fail.

    ``mend`` is a command, or what to do where no command does it.
    """

    name: str
    state: State
    found: str
    meaning: str = ""
    mend: str | None = None
