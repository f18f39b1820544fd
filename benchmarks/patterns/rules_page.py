"""The page about the lint, written from the table of rules and the first paragraphs of their docstrings; the others say what was built."""

from __future__ import annotations

from inspect import cleandoc
from pathlib import Path

from dq_deploy.exporters.lint import RULES, Rule

RULES_PAGE = Path(__file__).parents[2] / "docs" / "lint.md"
_INTRODUCTION = """\
# The lint

`dq-deploy check --lint BUNDLE` reads a bundle's graph (or any ONNX file, judged as for TensorRT) and names what crashes an engine's
builder, is refused, loses INT8, or is slow. It builds and runs nothing, and needs neither torch nor an engine. `build-engine` lints before
every build. Each finding says what to do. From Python:

```python
result = dq_deploy.lint("bundle/")  # or an opened artefact, or "model.onnx"; target="onnxruntime" applies the other rules
for finding in result.findings:  # truthy result: no errors
    print(finding.severity, finding.rule, finding.node, finding.module, finding.message, finding.values, finding.hint)
result.enforce()  # ArtifactError naming every error
```

- **error**: an engine of that target refuses the graph, crashes, leaves INT8, or computes nonsense. Exit code 3.
- **warning**: it works, slower or larger than it could. Exit code 0.
- `build-engine --allow RULE` (repeatable) lets the errors of one rule pass; the engine's manifest (`lint_allowed`) and `inspect` show it.
  `external-data` and `invalid-onnx` cannot be allowed.

Each rule comes from [graph patterns](../benchmarks/patterns/RESULTS.md) that were built or opened. What no pattern shows, the lint does not
know: it is no proof that a graph builds.

This page is written from the rules (`python -m benchmarks.patterns --page-only`).
"""


def rules_page() -> str:
    """The page, in Markdown: a table for each severity and targets."""
    groups: dict[str, list[Rule]] = {}
    for rule in RULES:
        groups.setdefault(_heading(rule), []).append(rule)
    return "\n".join([_INTRODUCTION, *(line for heading in sorted(groups) for line in _table(heading, groups[heading]))])


def _heading(rule: Rule) -> str:
    targets = " and ".join(f"`{target}`" for target in rule.targets)
    return f"## {rule.severity.capitalize()}s for {targets}"


def _table(heading: str, rules: list[Rule]) -> list[str]:
    return [heading, "", "| rule | |", "|---|---|", *map(_row, rules), ""]


def _row(rule: Rule) -> str:
    text = cleandoc(rule.find.__doc__ or "").replace("``", "`").replace("|", "\\|").partition("\n\n")[0]
    return f"| `{rule.id}` | {text} |"
