"""Does what is installed work? Each library is imported in a process of its own: a broken one may crash, hang, or be slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..engines.descriptors.descriptor import EngineDescriptor
from ..engines.descriptors.registry import engines
from ..progress import Progress, silent

TIMEOUT_S = 180.0
_PREFIX = "dq-deploy doctor:"

# What a child runs, and prints as one JSON line, by module; the engines' own stand in their descriptors.
PROGRAMS = {
    "torch": """
import torch
found = {"built_for_cuda": torch.version.cuda, "cuda": torch.cuda.is_available()}
""",
    "diffusers": """
from diffusers import DDIMScheduler, UNet2DModel
found = {}
""",
    "onnxscript": """
import onnx, onnx_ir, onnxscript
found = {}
""",
    "driver": """
import ctypes
try:
    library = ctypes.CDLL("libcuda.so.1")
    version, count = ctypes.c_int(), ctypes.c_int()
    code = library.cuInit(0) or library.cuDriverGetVersion(ctypes.byref(version)) or library.cuDeviceGetCount(ctypes.byref(count))
    found = {"code": code, "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}", "gpus": count.value}
except OSError:
    found = {"code": None}
""",
}
_DISTRIBUTIONS = {"torch": ("torch",), "diffusers": ("diffusers",), "onnxscript": ("onnxscript", "onnx", "onnx-ir")}


def distributions() -> dict[str, tuple[str, ...]]:
    """Module → the distributions that bring it, of which one is enough for an engine's."""
    return _DISTRIBUTIONS | {engine.modules[0]: engine.distributions for engine in _engines()}


def _programs() -> dict[str, str]:
    default = {engine.modules[0]: f"import {', '.join(engine.modules)}\nfound = {{}}" for engine in _engines()}
    return PROGRAMS | default | {engine.modules[0]: engine.probe for engine in _engines() if engine.probe}


def _engines() -> list[EngineDescriptor]:
    return [engine for engine in engines().values() if not engine.variant_of]


@dataclass(frozen=True)
class Probed:
    """What a module said of itself, or why it could not be asked."""

    module: str
    found: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def probe_all(modules: Iterable[str], *, timeout_s: float = TIMEOUT_S, progress: Progress = silent) -> dict[str, Probed]:
    """Ask every module, a few at a time."""
    names, programs = list(modules), _programs()
    with progress("trying what is installed", len(names)) as advance, ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:

        def ask(name: str) -> Probed:
            result = probe(name, programs[name], timeout_s=timeout_s)
            advance(1, name)
            return result

        return {result.module: result for result in pool.map(ask, names)}


def probe(module: str, program: str, *, timeout_s: float = TIMEOUT_S) -> Probed:
    """Run a program that leaves a dictionary ``found``, in a process of its own."""
    code = f"import json\n{program}\nprint({_PREFIX!r} + json.dumps(found))\n"
    try:
        done = subprocess.run(  # noqa: S603  our own program
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return Probed(module, error=f"no answer in {timeout_s:g} s")
    line = next((line for line in reversed(done.stdout.splitlines()) if line.startswith(_PREFIX)), None)
    if done.returncode == 0 and line:
        return Probed(module, found=json.loads(line.removeprefix(_PREFIX)))
    if done.returncode < 0:
        return Probed(module, error=f"importing it kills the process (signal {-done.returncode})")
    last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")
    return Probed(module, error=last)
