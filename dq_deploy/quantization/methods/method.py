"""What a named method is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TIME, ATTENTION, FEED_FORWARD = "@time", "@attention", "@feed-forward"
ROLES = frozenset({TIME, ATTENTION, FEED_FORWARD})
"""Layers by their role in the network (graph/roles.py), where a pattern of names would fit one architecture only."""


@dataclass(frozen=True)
class Method:
    """A published method as options of ``QuantizeConfig``: they are filled in, and the user's own options win.

    ``limits`` says what of the paper it leaves out or cannot do here, in sentences.
    """

    name: str
    title: str
    paper: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
