"""Which versions of a library read an engine that another version has built."""

from __future__ import annotations

import re


def same_or_compatible(installed: str, built: str, version_compatible: bool) -> bool:
    """TensorRT reads engines of its own version only; those built version-compatible also by later ones of the same major version."""
    now, then = numbers(installed), numbers(built)
    return now[:1] == then[:1] and now >= then if version_compatible else installed == built


def not_older(installed: str, built: str, version_compatible: bool) -> bool:  # noqa: ARG001  it has no such engines
    """OpenVINO reads what an earlier OpenVINO has saved."""
    return numbers(installed) >= numbers(built)


def numbers(version: str) -> tuple[int, ...]:
    """The first four numbers of a version, or of a compute capability."""
    return tuple(map(int, re.findall(r"\d+", version)[:4]))
