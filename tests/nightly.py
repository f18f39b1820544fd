"""Which of a test's parameters always run, and which only in ``make nightly``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_nightly(values: Iterable[Any], *always: Any) -> list[Any]:
    """``values`` as parameters; those that are not among ``always`` are left out without ``--nightly``."""
    values = list(values)
    assert all(value in values for value in always), f"{always} are to run always and are not among {values}"
    return [value if value in always else pytest.param(value, marks=pytest.mark.nightly) for value in values]
