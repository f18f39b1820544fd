"""NVIDIA TensorRT's place, taken by TensorRT-RTX: the enterprise library cannot be installed where there is no GPU.

The stand-in is a package called ``tensorrt`` that is TensorRT-RTX's, told to compile for compute capability 8.9, beside a CUDA driver that
knows one GPU. What calls it is the real code, and what parses and compiles is a real TensorRT; only the library itself is another.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

PACKAGE = """
import json, os
from pathlib import Path
from tensorrt_rtx import *
import tensorrt_rtx as rtx
from tensorrt_rtx import __version__ as _real

__version__ = os.environ.get("STAND_IN_VERSION", "10.9.0.34")


class Builder(rtx.Builder):
    def create_builder_config(self):
        config = super().create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(ComputeCapability.SM89, 0)
        return config

    def build_serialized_network(self, network, config):
        seen = {
            "optimization_level": config.builder_optimization_level,
            "workspace": config.get_memory_pool_limit(MemoryPoolType.WORKSPACE),
            "flags": [name for name, flag in BuilderFlag.__members__.items() if config.get_flag(flag)],
            "strongly_typed": network.get_flag(NetworkDefinitionCreationFlag.STRONGLY_TYPED),
        }
        Path(os.environ["STAND_IN_RECORD"]).write_text(json.dumps(seen))
        return super().build_serialized_network(network, config)
"""
# Loaded at the start of every child process: a driver with one GPU of compute capability 8.9.
DRIVER = """
import ctypes

class Driver:
    def __getattr__(self, name):
        def call(*arguments):
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 9}[arguments[1]]
            return 0
        return call

load = ctypes.CDLL
ctypes.CDLL = lambda name, *rest, **more: Driver() if name == "libcuda.so.1" else load(name, *rest, **more)
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the package and the driver in the way of this process and its children; the file in which a build records its settings."""
    package = folder / "stand-in"
    (package / "tensorrt").mkdir(parents=True)
    (package / "tensorrt" / "__init__.py").write_text(PACKAGE)
    (package / "sitecustomize.py").write_text(DRIVER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(package)
    monkeypatch.setenv("STAND_IN_RECORD", str(folder / "settings.json"))
    return folder / "settings.json"


def recorded(file: Path) -> dict[str, Any]:
    """What the builder was given."""
    settings: dict[str, Any] = json.loads(file.read_text())
    return settings
