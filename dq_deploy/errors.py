"""Everything that can go wrong for a user, each with the exit code that the command line ends with.

An error says what happened with the values, where (layer, timestep, file), and in ``hint`` what to do next.
Any other exception that reaches the command line is a bug of ours and ends with exit code 1 and a traceback.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path


class DqDeployError(Exception):
    """Base of every error that a user can cause or fix."""

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


def did_you_mean(given: Iterable[str], known: Iterable[str]) -> str:
    """A question for a hint: the three known names that those given, or patterns, are nearest to; "" where none is near."""
    names = {name.lower(): name for name in known}
    near = dict.fromkeys(near for one in given for near in get_close_matches(one.lower().strip("*"), names, cutoff=0.5))
    return f"did you mean {', '.join(names[name] for name in list(near)[:3])}? " if near else ""


def beside(missing: str | Path) -> str:
    """A hint about a file that is not there: near names beside it, and the folder that was looked in."""
    folder = Path(missing).expanduser().absolute().parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return f"its folder {folder} cannot be read: {error.strerror}"
    return f"{did_you_mean([Path(missing).name], names)}it was looked for in {folder}"


_NO_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "bad allocation",
              "failed to allocate memory", "unable to allocate", "unable to mmap")  # fmt: skip
_ASKED = re.compile(r"(?:allocate|allocate memory for requested buffer of size) ([\d.]+) ?(bytes|[KMGT]iB)?")
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it: lazy importers wrap a missing package in errors of their own."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def out_of_memory(error: BaseException, doing: str = "") -> ResourceError | None:
    """The ResourceError that an error is, or was caused by, saying how much was requested while ``doing`` what; None for any other error.

    Allocators have no class of error in common: torch's for the CPU raises RuntimeError, and so do OpenVINO and ONNX Runtime.
    """
    for cause in causes(error):
        if isinstance(cause, ResourceError):
            return cause
        if isinstance(cause, DqDeployError):  # in our own words; what it was made from comes next
            continue
        text = " ".join(str(cause).split())
        short = isinstance(cause, OSError) and cause.errno == errno.ENOMEM
        if short or isinstance(cause, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
            message = f"out of memory{' while ' if doing else ''}{doing}: {_asked(text) or text or type(cause).__name__}"
            hint = "a machine with more memory, or a smaller model" if doing else "a smaller --batch-size needs less"
            return ResourceError(message, hint)
    return None


def raise_if_out_of_memory(error: BaseException, doing: str = "") -> None:
    """For every place that takes an error for something else: raises ResourceError where memory ran out while ``doing`` what."""
    found = out_of_memory(error, doing)
    if found is not None:
        raise found from (None if found in causes(error) else error)


def _asked(text: str) -> str:
    """An allocator's message with the requested amount in front, in words; nothing where it does not say."""
    found = _ASKED.search(text)
    if found is None:
        return ""
    number, unit = float(found[1].rstrip(".")), found[2] or "bytes"
    size = number * (1 if unit == "bytes" else 1024 ** (_UNITS.index(unit) + 1))
    power = min(len(_UNITS), (int(max(size, 1)).bit_length() - 1) // 10)
    return f"{size / 1024**power:.4g} {_UNITS[power - 1] if power else 'bytes'} were requested ({text})"


def summarized(error: Exception) -> str:
    """The first lines of what a library says, short enough for one error line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch puts the tensor's name on the second line.
    return " ".join(lines[:2])[:400] or type(error).__name__
