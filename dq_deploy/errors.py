"""Everything that can go wrong for a user, each with the exit code that the command line ends with.

An error says what happened with the values, where (layer, timestep, file), and in ``hint`` what to do next.
Any other exception that reaches the command line is a bug of ours and ends with exit code 1 and a traceback.
"""

from __future__ import annotations


class DqDeployError(Exception):
    """Base of every error that a user can cause or mend."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(DqDeployError):
    """Wrong use or configuration: an unknown preset, an output that exists, no such path."""

    exit_code = 2


class ArtifactError(DqDeployError):
    """A bad input artefact: no pipeline in there, NaN weights, a hash that does not match."""

    exit_code = 3


class EnvironmentProblem(DqDeployError):
    """A missing dependency, or a version that does not fit."""

    exit_code = 4


class ResourceError(DqDeployError):
    """Out of memory, VRAM or disk."""

    exit_code = 5


class AccuracyGateError(DqDeployError):
    """The accuracy gate failed."""

    exit_code = 6


class PerformanceGateError(DqDeployError):
    """The performance gate failed."""

    exit_code = 7
