"""The command line in tests: in this process, or in one of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from dq_deploy.cli import run

HEAVY = (
    "torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "diffusers",
    "transformers",
    "onnxruntime",
    "openvino",
    "tensorrt_rtx",
    "polygraphy",
    "matplotlib",
)
"""Packages that help, inspection and lint do without."""


_PROGRESS = re.compile(r"[\w .-]+: (done at )?\d+/\d+.*")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: object) -> Ended:
        capfd.readouterr()
        code = run([str(a) for a in arguments])
        captured = capfd.readouterr()
        return Ended(code, captured.out, captured.err)

    return call


def process(*arguments: object, without: tuple[str, ...] = ()) -> Ended:
    """The command in a process of its own, in which some packages cannot be imported."""
    program = f"""
import sys
from importlib.abc import MetaPathFinder
hidden = {without!r}
class Hide(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
from dq_deploy.cli import main
main()
"""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return Ended(done.returncode, done.stdout, done.stderr)


def assert_refused(ended: Ended, code: int, *words: str) -> None:
    """One error line with these words, perhaps a hint after it, and nothing else but the progress of what came before."""
    assert ended.code == code, ended.err
    assert ended.out == ""
    lines = [line for line in ended.err.splitlines() if not _PROGRESS.fullmatch(line)]
    assert "Traceback" not in ended.err
    assert ended.err.count("error: ") == 1
    assert lines[0].startswith("error: "), ended.err
    assert not lines[1:] or lines[1].startswith("hint: "), ended.err
    for word in words:
        assert word in ended.err
