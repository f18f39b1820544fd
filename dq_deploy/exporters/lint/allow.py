"""Rules that a user overrides: the lint knows small patterns, and a graph may be one in which an engine does better."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ...errors import UsageError, did_you_mean
from .rules import RULES


def check_allowed(names: Iterable[str], target: str) -> list[str]:
    """The rules, each once. Raises UsageError naming all that are unknown, guard the parsers, or are not an error for that target."""
    requested = list(dict.fromkeys(names))
    known = [rule.id for rule in RULES if target in rule.targets and rule.severity == "error" and rule.id not in _GUARDS]
    if unknown := [name for name in requested if name not in known]:
        hint = did_you_mean(unknown, known).strip() or f"there are: {', '.join(known)}"
        raise UsageError(f"no rule of the lint that may be allowed in a build for {target}: {', '.join(unknown)}", hint)
    return requested


def consequences(allowed: Collection[str], broken: Collection[str]) -> list[str]:
    """A line for each allowed rule: what is known to become of a graph that breaks it, or that this one does not."""
    known = [
        f"{rule.id} is allowed: {_first_line(rule.find.__doc__)}{_CRASH if rule.crashes else ''}" for rule in RULES if rule.id in broken
    ]
    return known + [f"{name} is allowed, and the graph does not break it" for name in allowed if name not in broken]


_GUARDS = ("external-data", "invalid-onnx")  # of what a parser is given: no matter of opinion
_CRASH = " That crashes the builder, in a process of its own: this build may end so, with exit code 3."


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n\n", 1)[0].replace("\n", " ")
