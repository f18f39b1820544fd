"""Versions of what is installed."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "dq-deploy"


def installed_version(name: str) -> str | None:
    """Version of a distribution, None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
