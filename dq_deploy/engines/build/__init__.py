"""Bundle → engine."""
