"""Accuracy: what a bundle computes against its checkpoint and against the float model."""

from .check import CheckResult, check

__all__ = ["CheckResult", "check"]
