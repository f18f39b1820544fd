"""One thing that was looked at."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

State = Literal["ok", "absent", "note", "wrong"]


class Finding(BaseModel):
    """``absent`` is something optional that is not there, ``note`` something to know, ``wrong`` something that will fail.

    ``mend`` is a command, or what to do where no command does it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    state: State
    found: str
    meaning: str = ""
    mend: str | None = None
