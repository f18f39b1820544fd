"""What a rule is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from .finding import Severity
from .view import View


@dataclass(frozen=True)
class Hit:
    """What a rule reports: the node (None: the graph as a whole, or an initializer that ``name`` gives), what is wrong, the figures."""

    node: ir.Node | None
    message: str
    values: dict[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Rule:
    """One entry of the table: for which targets ``find`` is asked, how bad a hit is, and what to do about it.

    The docstring of ``find`` says what the engine does and how that is known. ``crashes``: the engine's builder dies of it.
    """

    id: str
    find: Callable[[View], Iterable[Hit]]
    hint: str
    targets: tuple[str, ...]
    severity: Severity = "error"
    crashes: bool = False
