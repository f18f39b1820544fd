"""A stopwatch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def timed(action: Callable[[], Any]) -> float:
    """Seconds that an action takes."""
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
