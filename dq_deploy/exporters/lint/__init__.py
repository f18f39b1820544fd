"""Finding, before any long step, what would crash an engine builder, be refused by an engine, or silently lose INT8."""

from .finding import Finding, LintResult
from .rules import RULES, Rule
from .run import lint

__all__ = ["RULES", "Finding", "LintResult", "Rule", "lint"]
