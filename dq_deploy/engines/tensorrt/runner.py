"""Runs engines of TensorRT and TensorRT-RTX on the GPU that they were built for.

An engine is code. Its files, its backend, the library's version and the GPU's compute capability are compared first; only then is it
deserialized, with host code off: Polygraphy would turn it on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...artifacts import Artifact, is_kind
from ...artifacts.details import EngineDetails
from ...artifacts.reading import read_record
from ...errors import ArtifactError, EnvironmentProblem, ResourceError, raise_if_out_of_memory
from ..build.profiles import Range, nearest
from ..devices.cuda_driver import gpu_compute_capability
from ..layer_report import LayerReport
from ..layer_report.kernels import Kernel
from ..layer_report.roofline import Peaks, Work, work_of
from ..loading.engine_files import (
    builder_of,
    check_backend_is,
    check_version,
    entry_for,
    open_graph,
    outside,
    rebuild_hint,
    take_to_a_gpu,
    verified_bytes,
)
from ..running.finite import Nonfinite, checked
from ..running.runner import Array, GraphRunner, InputSpec, bind_inputs
from .cuda_device import CudaDevice
from .descriptor import TENSORRT, TENSORRT_RTX
from .inspector import inspected_kernels

# By TensorRT's names; numpy has no bfloat16, so such outputs are passed as float32.
_TORCH = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64, "INT32": torch.int32, "BOOL": torch.bool,
}  # fmt: skip
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32, "BOOL": np.bool_}


@dataclass
class _Binding:
    """The tensors of one set of shapes, the context that works on them, the profile that takes them, and how to run.

    That is one call, or the replay of its graph.
    """

    tensors: dict[str, torch.Tensor]
    context: Any
    profile: int
    run: Callable[[], None]


class TensorRtRunner(GraphRunner):
    """An engine folder (or opened artefact) on the first GPU. ``cuda_graphs`` replays each set of shapes as one CUDA graph.

    ``nonfinite`` is what happens to samples with NaN or infinity (finite.py).

    Raises ArtifactError (a changed file, an engine of another backend, one that does not load), EnvironmentProblem (TensorRT or a GPU is
    missing, or is not what the engine was built for; with the command that builds it again) and ResourceError (GPU memory).
    """

    def __init__(
        self,
        source: str | Path | Artifact,
        *,
        cuda_graphs: bool = False,
        device: CudaDevice | None = None,
        nonfinite: Nonfinite = "refuse",
    ) -> None:
        self.nonfinite = checked(nonfinite)
        self._artifact = engine = open_graph(source)
        details = check_backend_is(engine, TENSORRT.name, TENSORRT_RTX.name)
        trt = builder_of(engine.path, details).load()
        check_version(engine, details, str(trt.__version__))
        capability = _capability(engine)
        entry = entry_for(engine, details, capability)
        self._report = entry.report
        self.device = device or CudaDevice()
        self._graphs = cuda_graphs
        self._trt = trt
        self.name = details.backend
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime, self._engine = _deserialize(trt, self._logger, engine, details, entry.file)
        self._context = None if cuda_graphs else self._new_context()
        self._bindings: dict[tuple[tuple[int, ...], ...], _Binding] = {}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        self._profiles = [self._profile(number) for number in range(self._engine.num_optimization_profiles)]
        self.specs = tuple(self._spec(name, details.rows.get(name)) for name in self._inputs)
        self.details: dict[str, Any] = {
            "engine": self.name,
            "version": details.version,
            "provider": self.device.name,
            "compute_capability": capability,
            "cuda_graphs": "asked for" if cuda_graphs else "off",
        }

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], None]:
        """Copy inputs [N, ...] that fit to the GPU; what is returned starts one run on them, without waiting for it."""
        return self._bound(feeds).run

    def device_ms(self, inputs: Mapping[str, Array]) -> float:
        """Milliseconds that one run on inputs [N, ...] takes, between two events: without the copies in and out, and without Python."""
        return self.device.timed(self.bind(bind_inputs(self.specs, inputs)))

    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that run here, as TensorRT's engine inspector has them. Raises ArtifactError where it does not say."""
        inspector = _created(self._engine.create_engine_inspector, "an engine inspector")
        return inspected_kernels(str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)))

    def peaks(self) -> Peaks | None:
        """What the GPU can do at the most, where that is known."""
        return self.device.peaks(self.details["compute_capability"])

    def work(self) -> Work | None:
        """What the engine's layer report says that a run takes; None where the report has no planned layer."""
        try:
            report = read_record(self._artifact.file(self._report), LayerReport, "a layer report")
        except ArtifactError:
            return None
        return work_of(report) if report.layers else None

    def _infer(self, feeds: dict[str, Array]) -> Array:
        binding = self._bound(feeds)
        binding.run()
        with self.device.on_stream():
            output = binding.tensors[self._outputs[0]]
            host = (output.float() if output.dtype == torch.bfloat16 else output).cpu()
        self.device.synchronize()
        array: Array = host.numpy().copy()
        return array

    def _bound(self, feeds: Mapping[str, Array]) -> _Binding:
        shapes = {name: tuple(feeds[name].shape) for name in self._inputs}
        key = tuple(shapes.values())
        if key not in self._bindings:
            self._bindings[key] = self._prepare(shapes)
        binding = self._bindings[key]
        self._point_to(binding)
        with self.device.on_stream():
            for name in self._inputs:
                binding.tensors[name].copy_(torch.tensor(feeds[name]))
        return binding

    def _prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> _Binding:
        profile = nearest(self._profiles, _sizes(shapes))
        if profile is None:
            engine = self._artifact
            assert is_kind(engine, EngineDetails)
            raise outside(engine, _named(engine.details, shapes))
        # A graph holds on to the state of its context, so other shapes get a context of their own.
        context = self._context or self._new_context()
        try:
            tensors = {name: self.device.empty(shape, self._dtype(name)) for name, shape in shapes.items()}
            self._set_profile(context, profile)
            self._set_shapes(context, shapes)
            for name in self._outputs:
                tensors[name] = self.device.empty(tuple(context.get_tensor_shape(name)), self._dtype(name))
        except torch.OutOfMemoryError as error:
            raise ResourceError(f"out of GPU memory for inputs of {dict(shapes)}: {error}", "try a smaller batch") from error
        binding = _Binding(tensors, context, profile, lambda: self._enqueue(context))
        if self._graphs:
            self._capture(binding)
        return binding

    def _new_context(self) -> Any:
        if self.name == TENSORRT.name:
            return _created(self._engine.create_execution_context, "an execution context")
        # TensorRT-RTX would exchange kernels for ones of the shapes given in the background, and a graph would keep the first ones.
        config = self._engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return _created(lambda: self._engine.create_execution_context(config), "an execution context")

    def _capture(self, binding: _Binding) -> None:
        """Record the run as a graph. What cannot be recorded runs without one, and ``details`` say so."""
        self._point_to(binding)
        with self.device.on_stream():
            for name in self._inputs:
                binding.tensors[name].zero_()
        binding.run()  # the first run may allocate, which a graph cannot
        self.device.synchronize()
        try:
            binding.run = self.device.captured(binding.run)
            self.details["cuda_graphs"] = "on"
        except (RuntimeError, ArtifactError) as error:
            self.details["cuda_graphs"] = f"not possible: {' '.join(str(error).split())[:200]}"

    def _set_profile(self, context: Any, profile: int) -> None:
        """Have a context run the kernels of a profile: the shapes of its inputs are to be set anew then."""
        if context.active_optimization_profile != profile and not context.set_optimization_profile_async(profile, self.device.stream):
            raise ArtifactError(f"{self._artifact.path}: the engine does not take its profile {profile}; what TensorRT said is above")

    def _point_to(self, binding: _Binding) -> None:
        self._set_profile(binding.context, binding.profile)
        self._set_shapes(binding.context, {name: tuple(binding.tensors[name].shape) for name in self._inputs})
        for name, tensor in binding.tensors.items():
            binding.context.set_tensor_address(name, tensor.data_ptr())

    def _set_shapes(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ArtifactError(f"{self._artifact.path}: the engine does not take '{name}' in shape {list(shape)}")

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self.device.stream):
            raise ArtifactError(f"{self._artifact.path}: the engine failed to run; what TensorRT said is above")

    def _dtype(self, name: str) -> torch.dtype:
        return _TORCH[self._engine.get_tensor_dtype(name).name]

    def _profile(self, number: int) -> dict[str, Range]:
        """(min, opt, max) of every dimension of every input, as ``_sizes`` names them."""
        ranges = {name: self._engine.get_tensor_profile_shape(name, number) for name in self._inputs}
        return {
            f"{name} {axis}": (sizes[0], sizes[1], sizes[2])
            for name, shapes in ranges.items()
            for axis, sizes in enumerate(zip(*shapes, strict=True))
        }

    def _spec(self, name: str, entries: int | None) -> InputSpec:
        dtype = self._engine.get_tensor_dtype(name).name
        if dtype not in _NUMPY:
            raise ArtifactError(f"{self._artifact.path}: input '{name}' is {dtype}, which no diffusion model takes")
        ranges = [self._engine.get_tensor_profile_shape(name, number) for number in range(len(self._profiles))]
        smallest, largest = ([pick(sizes) for sizes in zip(*(r[at] for r in ranges), strict=True)] for pick, at in ((min, 0), (max, 2)))
        shape = tuple(None if size < 0 else int(size) for size in self._engine.get_tensor_shape(name))
        return InputSpec(name, shape, np.dtype(_NUMPY[dtype]), tuple(zip(smallest, largest, strict=True)), entries)


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Every dimension of every input by a name of its own."""
    return {f"{name} {axis}": size for name, shape in shapes.items() for axis, size in enumerate(shape)}


def _named(details: EngineDetails, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The same of those that have a name in the manifest: batch, height and others."""
    return {
        named: size
        for entry in details.inputs
        if entry.name in shapes
        for named, size in zip(entry.shape, shapes[entry.name], strict=True)
        if isinstance(named, str)
    }


def _capability(engine: Artifact[Any]) -> str:
    try:
        major, minor = gpu_compute_capability()
    except (OSError, RuntimeError) as error:
        raise_if_out_of_memory(error)
        raise EnvironmentProblem(
            f"{engine.path} is an engine for an NVIDIA GPU, and none can be used here: {error}",
            f"{take_to_a_gpu([engine])}. Here, use the bundle it was built from (onnxruntime and OpenVINO run that), or build an engine "
            "with --backend openvino",
        ) from None
    return f"{major}.{minor}"


def _deserialize(trt: Any, logger: Any, engine: Artifact[Any], details: EngineDetails, file: str) -> tuple[Any, Any]:
    """(runtime, engine): the one keeps the other alive."""
    runtime = _created(lambda: trt.Runtime(logger), "a runtime")
    runtime.engine_host_code_allowed = False
    loaded = runtime.deserialize_cuda_engine(verified_bytes(engine, file))
    if loaded is None:
        raise ArtifactError(f"TensorRT does not load {engine.path / file}; what it said is above", rebuild_hint(engine.path, details))
    return runtime, loaded


def _created(create: Callable[[], Any], what: str) -> Any:
    made = create()
    if made is None:
        raise ResourceError(f"TensorRT could not make {what}; what it said is above", "free some GPU memory")
    return made
