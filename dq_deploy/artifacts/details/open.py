"""What every part of a manifest's details is read as."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Open(BaseModel):
    """More keys than its fields may be there: they are for people."""

    model_config = ConfigDict(extra="allow", frozen=True)
