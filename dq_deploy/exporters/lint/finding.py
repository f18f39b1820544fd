"""What the lint found, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import groupby
from typing import Any, Literal

from pydantic import Field

from ...artifacts.records import Record
from ...errors import ArtifactError

Severity = Literal["error", "warning"]


class Finding(Record):
    """One offender. ``error``: an engine refuses it, crashes, loses INT8 or computes nonsense; ``warning``: slower or larger.

    ``module`` is the path of the module that the node came from, None where the graph does not tell; ``values`` are the figures that
    ``message`` names.
    """

    rule: str
    severity: Severity
    node: str
    op: str
    module: str | None
    message: str
    values: dict[str, Any] = Field(default_factory=dict)
    hint: str


class LintResult(Record):
    """Every finding in one graph, errors first. Truthy when no finding is an error."""

    source: str
    target: str
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return not self.errors

    @property
    def errors(self) -> list[Finding]:
        """What an engine refuses, crashes on, or runs wrongly."""
        return [f for f in self.findings if f.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """What is merely slower or larger than it could be."""
        return [f for f in self.findings if f.severity == "warning"]

    def enforce(self, allow: Collection[str] = ()) -> dict[str, int]:
        """Raise ArtifactError naming every error, rule by rule, but for the rules in ``allow``; gives how many errors of each passed."""
        errors = [f for f in self.errors if f.rule not in allow]
        if not errors:
            return dict(Counter(f.rule for f in self.errors))
        lines, hints = [], []
        for rule, group in groupby(errors, key=lambda f: f.rule):
            found = list(group)
            lines += [f"  {rule}: {_where(f)}: {f.message}" for f in found]
            hints.append(f"{rule}: {found[0].hint}")
        count = f"{len(errors)} error" + ("s" if len(errors) > 1 else "")
        raise ArtifactError(
            "\n".join([f"the graph of {self.source} is not fit for target {self.target}, {count}:", *lines]), "\n".join(hints)
        )


def _where(finding: Finding) -> str:
    module = f" (module {finding.module})" if finding.module else ""
    return f"{finding.node or 'the graph'}{module}"
