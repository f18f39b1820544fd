"""The commands and the Python of the documentation: read from the Markdown, and what stands in tests for what they name.

A fence is not run where the line above it (or above that, an empty one) is ``<!-- not run: REASON -->``; it is parsed all the same.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}

SHELL = ("", "bash", "console", "sh")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z")
_INLINE = re.compile(r"`((?:dq-deploy )?[a-z][a-z-]* [^`]+)`")

# Programs of others that a sentence calls with options.
_OTHER_PROGRAMS = ("accelerate", "hf", "pip", "python", "torchrun", "trtexec")

# What a page names → what the tests have. Folders that a command before has written keep their names.
SOURCES = ("path/to/pipeline", "builtin:fashion-mnist-unet")
_STANDS_FOR = {"path/to/dit": "builtin:fashion-mnist-dit", "40dB": "30dB"}  # a tiny model of random weights has no 40
# Options that make a command of a page take seconds; they come last, and of an option given twice click takes the last one.
FASTER = {
    "quantize": "--steps 4 --calibration-samples 4 --iterations 0 --dilation none --config {small}",
    "export": "--dtype fp32",  # half precision has an error of its own
    "sample": "-n 2 --steps 2",
    "report": "-n 2 --steps 2 --no-check --no-layer-error",
    "bench": "--runs 2 --threads 1",
}
# The same for a page's Python: what it says → what is run.
FASTER_PYTHON = {
    'preset="w8a8", steps=20)': 'steps=5, calibration_samples=4, reference_samples=24, iterations=0, dilation="none", max_float_share=0.5)',
    "num_inference_steps=20)": "num_inference_steps=2)",
    "steps=10,": "steps=3,",
    "iterations=20,": "iterations=2,",
}
SMALL = {"max_float_share": 0.5, "reference_samples": 8}  # the first layer weighs more in a tiny model, and SNRs of few samples scatter


@dataclass(frozen=True)
class Fence:
    """One fenced block. ``line`` is its first, ``not_run`` why it is only parsed."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def fences(page: str) -> Iterator[Fence]:
    text = PAGES[page].read_text()
    for match in _FENCE.finditer(text):
        before = _NOT_RUN.search(text[: match.start()])
        yield Fence(page, text.count("\n", 0, match.start()) + 2, match[1], match[2], before and before[1])


def shell_lines(fence: Fence) -> Iterator[list[str]]:
    """The words of each command, without comments, what is piped on, and the file that takes its output."""
    for line in fence.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for mark in (">", "|", "&&"):
            words = words[: words.index(mark)] if mark in words else words
        if words:
            yield words


def our_arguments(words: list[str]) -> list[str] | None:
    """What follows ``dq-deploy`` (or a launcher's ``-m dq_deploy``), without the ``...`` that stands for more; None for another program."""
    for name in ("dq-deploy", ".venv/bin/dq-deploy", "dq_deploy"):
        if name in words and not any("_COMPLETE=" in word for word in words):
            return [word for word in words[words.index(name) + 1 :] if word != "..."]
    return None


def inline_commands(page: str) -> Iterator[list[str]]:
    """Commands within a sentence or a table, with ``dq-deploy`` in front or an option behind: their words from the command on."""
    for match in _INLINE.finditer(_FENCE.sub("", PAGES[page].read_text())):
        words = match[1].split()
        if words[0] == "dq-deploy":
            yield words[1:]
        elif any(word.startswith("--") for word in words) and words[0] not in _OTHER_PROGRAMS:
            yield words


def mapped(arguments: list[str], pipeline: Path, small: Path) -> list[str]:
    """A page's command as the tests run it."""
    faster = FASTER.get(arguments[0], "").format(small=small)
    words = [str(pipeline) if word in SOURCES else _STANDS_FOR.get(word, word) for word in arguments]
    reachable = ["--min-snr", "1"] if "--min-snr" in words else []
    return words + faster.split() + reachable


def beside(arguments: list[str]) -> list[str]:
    """A command whose output goes to another name if there is one of its name already."""
    if "-o" not in arguments:
        return arguments
    at = arguments.index("-o") + 1
    free = (name for number in count() if not Path(name := f"{number or ''}{arguments[at]}").exists())
    return [*arguments[:at], next(free), *arguments[at + 1 :]]


def mapped_python(text: str, pipeline: Path) -> str:
    """A page's Python as the tests run it."""
    for source in SOURCES:
        text = text.replace(f'"{source}"', repr(str(pipeline)))
    for said, run in FASTER_PYTHON.items():
        text = text.replace(said, run)
    return text
