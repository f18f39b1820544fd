"""What ``build`` asks of its child process, and what the child leaves behind."""

from __future__ import annotations

import ctypes
import signal
from pathlib import Path
from typing import Any

from pydantic import Field

from ...artifacts.records import Record
from ...artifacts.writing import write_text
from ..layer_report.kernels import LayerDump

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the system end this process when the one that started it is killed: a builder must not outlive its command (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


class BuildRequest(Record):
    """One build. ``plan`` is the engine's file, ``profiles`` map every graph input to its (min, opt, max) shapes; most engines have one.

    ``compute_capability`` is the (major, minor) to compile for; None means the device of this machine. ``options`` are those of
    ``BuildOptions`` that were requested, ``about`` what the builder's ``details`` say of the bundle.
    """

    backend: str
    onnx: str
    plan: str
    result: str
    compute_capability: tuple[int, int] | None
    profiles: list[dict[str, ShapeRange]]
    options: dict[str, Any] = Field(default_factory=dict)
    about: dict[str, Any] = Field(default_factory=dict)


class BuildResult(Record):
    """Written once the engine is on disk: a build has succeeded when this exists and the files have these hashes, whatever the exit code.

    ``sha256`` has the hash of each file by its path. ``dump`` are the kernels, where the builder's log does not hold them;
    ``integer`` is False where INT8 kernels were turned off.
    """

    sha256: dict[str, str]
    version: str
    compute_capability: tuple[int, int] | None
    dump: LayerDump | None = None
    integer: bool = True

    def write(self, path: str) -> None:
        """Write the result: whole, and on disk when this returns."""
        write_text(Path(path), self.model_dump_json())
