"""The page about the lint, written from the table of rules and the first paragraphs of their docstrings; the others say what was built."""

from __future__ import annotations

from inspect import cleandoc
from pathlib import Path

from dq_deploy.exporters.lint import RULES, Rule

RULES_PAGE = Path(__file__).parents[2] / "docs" / "lint.md"
_INTRODUCTION = """\
# The lint

`dq-deploy check --lint BUNDLE` reads a bundle's graph (or any ONNX file, judged as for TensorRT) and names what is known to crash an
engine's builder, to be refused, to lose INT8, or to be slow. It builds and runs nothing, and needs neither torch nor an engine.
`dq-deploy build-engine` does the same before every build and refuses a graph with errors. From Python:

```python
result = dq_deploy.lint("bundle/")  # or an opened artefact, or "model.onnx"; target="onnxruntime" applies the other rules
for finding in result.findings:  # truthy result: no errors
    print(finding.severity, finding.rule, finding.node, finding.module, finding.message, finding.values, finding.hint)
result.enforce()  # ArtifactError naming every error
```

- **error**: an engine of that target refuses the graph, crashes, leaves INT8, or computes nonsense. Exit code 3.
- **warning**: it works, slower or larger than it could. Exit code 0.
- `--lint --checkpoint CHECKPOINT` lints first; errors end the command before anything is compared.
- `build-engine --allow RULE` (repeatable) lets the errors of one rule pass, with a warning; the engine's manifest (`lint_allowed`) and
  `inspect` show it. `external-data` and `invalid-onnx` keep files from parsers and cannot be allowed.

Each rule comes from patterns that were built or opened ([Graph patterns](../benchmarks/patterns/RESULTS.md), named in the rule's
docstring). What no pattern shows, the lint does not know: it is no proof that a graph builds.

`python -m benchmarks.patterns --page-only` writes this page from the rules.
"""


def rules_page() -> str:
    """The page, in Markdown."""
    return "\n".join([_INTRODUCTION, *(line for rule in RULES for line in _section(rule))])


def _section(rule: Rule) -> list[str]:
    text = cleandoc(rule.find.__doc__ or "").replace("``", "`").partition("\n\n")[0]
    kind = f"{'crash, ' if rule.crashes else ''}{rule.severity} for {' and '.join(rule.targets)}"
    return [f"## `{rule.id}`", "", f"*{kind}*. {text} To do: {rule.hint}.", ""]
