"""Finding, before any long step, what would crash an engine builder, be refused by an engine, or silently lose INT8."""

from .allow import check_allowed, consequences
from .finding import Finding, LintResult
from .rules import RULES, Rule
from .run import lint

__all__ = ["RULES", "Finding", "LintResult", "Rule", "check_allowed", "consequences", "lint"]
