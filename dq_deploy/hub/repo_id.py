"""What a repository of the hub is called."""

from __future__ import annotations

import re

from ..errors import UsageError

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_repo_id(repo_id: str) -> None:
    """Raise UsageError unless it is OWNER/NAME."""
    if not REPO_ID.fullmatch(repo_id):
        raise UsageError(f"'{repo_id}' is not a repository of the hub", "give OWNER/NAME")
