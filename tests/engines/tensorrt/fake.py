"""TensorRT's runtime and a GPU, as far as a runner calls them, on a machine that has neither.

A plan names an ONNX file; running the engine runs that file in ONNX Runtime on the memory whose addresses the runner has set. Every call
that matters is written down.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy.artifacts import Artifact, Manifest, create_artifact, open_artifact
from dq_deploy.engines.descriptors.descriptor import EngineDescriptor
from dq_deploy.engines.layer_report.roofline import Peaks, peaks_of
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.engines.tensorrt import runner as tensorrt_runner

VERSION = "10.9.0.34"


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._shapes, self._addresses = engine, {}, {}
        self.fails = False
        self.active_optimization_profile = 0

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self._engine.calls.append(f"profile {number} on stream {stream}")
        self.active_optimization_profile = number
        self._shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name, self._shapes["sample"])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self._engine.calls.append(f"execute on stream {stream}")
        if self._engine.fails:
            return False
        feeds = {name: self._view(name, shape).copy() for name, shape in self._shapes.items()}
        self._view("out_sample", self._shapes["sample"])[...] = self._engine.session.run(feeds)
        return True

    def _view(self, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        buffer = (ctypes.c_float * int(np.prod(shape))).from_address(self._addresses[name])
        return np.frombuffer(buffer, np.float32).reshape(shape)


class Engine:
    names = ("sample", "timestep", "out_sample")

    def __init__(self, plan: dict[str, Any], calls: list[str]) -> None:
        self.session = OnnxRuntimeRunner(plan["onnx"], optimized=False)
        self.profiles, self.calls, self.fails = plan["profiles"], calls, False
        self.num_optimization_profiles = len(self.profiles)
        self.inspector = plan.get("inspector", "")
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "output" if name == "out_sample" else "input"

    def get_tensor_dtype(self, name: str) -> _Named:
        assert name in self.names
        return _Named("FLOAT")

    def get_tensor_shape(self, name: str) -> list[int]:
        sizes = [size for _, *size in (shape for profile in self.profiles for shape in profile[name])]
        return [-1, *(own[0] if len(set(own)) == 1 else -1 for own in zip(*sizes, strict=True))]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        return self.profiles[profile][name]

    def create_engine_inspector(self) -> Any:
        return type("Inspector", (), {"get_engine_information": lambda _, kind: self.inspector if kind == "json" else "text"})()

    def create_execution_context(self) -> Context:
        self.calls.append("create_execution_context")
        return Context(self)


class FakeTensorRT:
    """The module ``tensorrt``."""

    __version__ = VERSION
    TensorIOMode = type("TensorIOMode", (), {"INPUT": "input", "OUTPUT": "output"})
    LayerInformationFormat = type("LayerInformationFormat", (), {"JSON": "json"})

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.engine: Engine | None = None
        module = self

        class Runtime:
            engine_host_code_allowed = None

            def __init__(self, logger: object) -> None:
                assert isinstance(logger, Logger)
                module.calls.append("Runtime")

            def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
                module.calls.append(f"deserialize with host code {self.engine_host_code_allowed}")
                if plan.startswith(b"refused"):
                    return None
                module.engine = Engine(json.loads(plan), module.calls)
                return module.engine

        class Logger:
            ERROR = 1

            def __init__(self, severity: int) -> None:
                pass

        self.Runtime, self.Logger = Runtime, Logger


class HostDevice:
    """A GPU whose memory is the host's. A captured graph replays the calls that were made while it was captured."""

    name, stream = "a GPU that is none", 7

    def __init__(self, *, capturable: bool = True) -> None:
        self.capturable, self.replays = capturable, 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def synchronize(self) -> None:
        pass

    def peaks(self, capability: str) -> Peaks | None:
        return peaks_of(capability, multiprocessors=100, clock_hz=1e9, memory_hz=1e9, bus_bits=256)

    def timed(self, work: Callable[[], None]) -> float:
        work()
        return 2.0

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        if not self.capturable:
            raise RuntimeError("operation not permitted when stream is capturing")

        def replay() -> None:
            self.replays += 1
            work()

        return replay


def install(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (8, 9)) -> FakeTensorRT:
    """Put the fake in TensorRT's place, beside a driver that knows one GPU."""
    module = FakeTensorRT()
    load = EngineDescriptor.load
    monkeypatch.setattr(EngineDescriptor, "load", lambda self: module if self.name in ("tensorrt", "tensorrt-rtx") else load(self))
    monkeypatch.setattr(tensorrt_runner, "gpu_compute_capability", lambda: capability)
    return module


def _shapes(bundle: Artifact, ranges: dict[str, Any]) -> dict[str, Any]:
    """(min, opt, max) shapes of every input for ranges by name."""
    return {
        entry["name"]: [[ranges[size][at] if isinstance(size, str) else size for size in entry["shape"]] for at in range(3)]
        for entry in bundle.manifest.details["inputs"]
    }


def engine_of(bundle: Artifact, path: Path, /, *, plan: bytes = b"", report: str = "{}", inspector: str = "", **changes: Any) -> Artifact:
    """An engine folder whose plan the fake understands; ``changes`` to the manifest's details. ``inspector`` is what that one says."""
    profile = {
        entry["name"]: [[batch if size == "batch" else size for size in entry["shape"]] for batch in (1, 2, 4)]
        for entry in bundle.manifest.details["inputs"]
    }
    origin = bundle.manifest
    details = {
        **origin.details,
        "backend": "tensorrt",
        "version": VERSION,
        "engines": [{"compute_capability": "8.9", "file": "model.sm89.engine", "report": "layers.sm89.json"}],
        "batch": [1, 2, 4],
        "profile": profile,
        "bundle": str(bundle.path),
        "options": {},
        **changes,
    }
    manifest = Manifest(
        kind="engine", model=origin.model, quantization=origin.quantization, timesteps=origin.timesteps, scheduler=origin.scheduler,
        details=details,
    )  # fmt: skip
    with create_artifact(path, manifest) as work:
        plans = [_shapes(bundle, one) for one in changes.get("profiles", [])] or [profile]
        content = plan or json.dumps({"onnx": str(bundle.file("model.onnx")), "profiles": plans, "inspector": inspector}).encode()
        (work / "model.sm89.engine").write_bytes(content)
        (work / "layers.sm89.json").write_text(report)
    return open_artifact(path, "engine")
