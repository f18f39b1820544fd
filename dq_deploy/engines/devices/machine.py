"""The machine a time was taken on: a number without it says nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from ...versions import DISTRIBUTION, installed_version

_CPUINFO = Path("/proc/cpuinfo")
# What decides which INT8 and half-precision kernels an engine takes, by its names in /proc/cpuinfo (x86, then Arm).
_INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx_vnni_int8",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
)
INTEGER_INSTRUCTIONS = ("avx_vnni", "avx512_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")
"""Those of them that multiply INT8 and add in 32 bits: a CPU with one is faster in integers than in float, and exact."""


def machine_info() -> dict[str, Any]:
    """CPU model, instruction sets that matter to INT8, cores this process may use, system, and versions. JSON-able."""
    from ..descriptors.registry import engines

    packages = {DISTRIBUTION, "numpy", "torch", *(name for engine in engines().values() for name in engine.distributions)}
    fields = _cpuinfo()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in sorted(packages) if (version := installed_version(name))},
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields; empty where the system has no such file."""
    if not _CPUINFO.is_file():
        return {}
    lines = _CPUINFO.read_text().split("\n\n", 1)[0].splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
