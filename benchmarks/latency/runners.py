"""What else runs a model: PyTorch, and the outside tools' models with their runtimes' own defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dq_deploy.engines.openvino.rewrites import rewrite
from dq_deploy.engines.openvino.shapes import ShapedModels
from dq_deploy.engines.running.runner import TIMESTEP, Array


class TorchRunner:
    """The float module, eager or compiled."""

    def __init__(self, module: torch.nn.Module, names: list[str], *, compiled: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self._names, self._module = names, torch.compile(module) if compiled else module
        self.name = "torch.compile" if compiled else "torch"
        self.details: dict[str, Any] = {"engine": self.name, "version": torch.__version__, "threads": threads}

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Array]) -> Array:
        """See ``Runner.run``."""
        values = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
        sample = values.pop(self._names[0])
        timestep = values.pop(TIMESTEP).reshape(-1).expand(len(sample))
        output = self._module(sample, timestep, **values)
        result: Array = (output if isinstance(output, torch.Tensor) else output[0]).numpy()
        return result


class PlainOnnxRuntime:
    """An ONNX file in a session with the defaults that a user gets."""

    def __init__(self, file: Path, *, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads take the cores from who is timed next
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self.name = "onnxruntime"
        self.details: dict[str, Any] = {"engine": self.name, "version": onnxruntime.__version__, "threads": threads}

    def run(self, inputs: Mapping[str, Array]) -> Array:
        """See ``Runner.run``."""
        output: Array = self._session.run(None, _fitting(inputs, self._shapes))[0]
        return output


class PlainOpenVino:
    """An ONNX file or IR compiled for the CPU at each shape as ours are, float32 for what is not INT8, the rest as OpenVINO decides.

    ``rewrites`` are applied first; none of them to what is not ours.
    """

    def __init__(self, file: Path, *, threads: int, rewrites: Sequence[Callable[[Any], None]] = ()) -> None:
        import openvino

        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        core = openvino.Core()
        model = core.read_model(str(file))

        def compile_for(shapes: Mapping[str, tuple[int, ...]] | None) -> Any:
            shaped = model.clone()
            shaped.reshape({name: list(shape) for name, shape in (shapes or {}).items()})
            rewrite(shaped, rewrites)
            return core.compile_model(shaped, "CPU", config)

        self._models = ShapedModels(compile_for, dynamic=True)
        shapes = {port.any_name: list(port.get_partial_shape()) for port in model.inputs}
        self._shapes = {name: [None if size.is_dynamic else size.get_length() for size in shape] for name, shape in shapes.items()}
        self.name = "openvino"
        self.details: dict[str, Any] = {"engine": self.name, "version": openvino.__version__, "threads": threads, "precision": "f32"}

    def run(self, inputs: Mapping[str, Array]) -> Array:
        """See ``Runner.run``."""
        return self._models.infer(_fitting(inputs, self._shapes))[0]


def _fitting(inputs: Mapping[str, Array], shapes: Mapping[str, Any]) -> dict[str, Array]:
    """``timestep`` as [1] or [N], as the graph has it."""
    size = next(len(value) for name, value in inputs.items() if name != TIMESTEP)
    count = 1 if shapes[TIMESTEP] == [1] else size
    steps = np.broadcast_to(np.asarray(inputs[TIMESTEP], np.float32).reshape(-1), (count,))
    return {**inputs, TIMESTEP: np.ascontiguousarray(steps)}
