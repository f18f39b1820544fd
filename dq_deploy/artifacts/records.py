"""What pydantic models of results and files have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Fixed once it is made, and of these fields alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Open(BaseModel):
    """More keys than its fields may be there: they are for people."""

    model_config = ConfigDict(extra="allow", frozen=True)
