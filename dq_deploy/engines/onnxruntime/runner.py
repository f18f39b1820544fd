"""ONNX Runtime: the reference executor, and the engine that is there wherever the package is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...artifacts import Artifact
from ...artifacts.reading import read_ir, read_onnx
from ...errors import ArtifactError, DqDeployError, EnvironmentProblem, ResourceError, UsageError, out_of_memory
from ...exporters.exact_sums import for_this_cpu, saturates
from ...formats.fp4 import FP4_DOMAIN
from ..running.finite import Nonfinite, checked
from ..running.lookup_tables import entries_in_onnx
from ..running.runner import Array, InputSpec, PartsRunner, graph_file
from .descriptor import CUDA, ONNXRUNTIME

_EXACT = "session.x64quantprecision"
# Why each of them is set:
SESSION_CONFIG = {
    # For graphs with Q/DQ around their products, where u8 × s8 saturates (exporters/exact_sums): it takes u8 × u8. Not on other CPUs: with
    # VNNI, products then take 2 to 3.5 times as long. It cannot load a graph whose layers share a weight or a weight's zero-point.
    _EXACT: "1",
    # Products of weights in blocks compute in fp32, as their graph says; by default they quantize the activations, which is no faster.
    "session.qdq_matmulnbits_accuracy_level": "1",
    # A MatMul and its bias would become a float Gemm before the integer fusions see them.
    "optimization.disable_specified_optimizers": "MatMulAddFusion",
    # Worker threads that go on spinning after a run take the cores from whatever is timed next.
    "session.force_spinning_stop": "1",
}
# Of an FP8 MatMul its optimizer makes a MatMulIntegerToFloat, which then takes no FP8: nothing between Q/DQ is fused.
_FP8_CONFIG = {"session.disable_quant_qdq": "1"}
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class OnnxRuntimeRunner(PartsRunner):
    """A bundle (folder or opened artefact) or an ONNX file in an onnxruntime session.

    ``providers``: in order of preference; the first must be the one in use. ``optimized`` off runs the graph node by node as it is
    written, which is what parity is judged on. ``threads`` None leaves the number to onnxruntime. ``nonfinite`` is what happens to samples
    with NaN or infinity (finite.py). May be run by several threads at once.

    Raises EnvironmentProblem (onnxruntime or the provider is missing) and ArtifactError (a graph that it does not load).
    """

    def __init__(
        self,
        source: str | Path | Artifact,
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        optimized: bool = True,
        threads: int | None = None,
        nonfinite: Nonfinite = "refuse",
    ) -> None:
        self.nonfinite = checked(nonfinite)
        ort = ONNXRUNTIME.load()
        if not providers:
            raise UsageError("no onnxruntime provider was given")
        if providers[0] not in ort.get_available_providers():
            raise _missing_provider(providers[0], ort.get_available_providers())
        self._file = file = graph_file(source)
        model = read_onnx(file)
        config = _session_config(model)
        entries = entries_in_onnx(model)
        self._session = _open(ort, file, model, list(providers), _session_options(ort, optimized, threads, config))
        if self._session.get_providers()[0] != providers[0]:
            raise _missing_provider(providers[0], self._session.get_providers())
        self._output = self._session.get_outputs()[0].name
        self.name = ONNXRUNTIME.name
        self.specs = tuple(_spec(value, file, entries.get(value.name)) for value in self._session.get_inputs())
        self.details: dict[str, Any] = {
            "engine": self.name,
            "version": ort.__version__,
            "provider": providers[0],
            "optimized": optimized,
            "threads": threads or "default",
            "session_config": config,
        }

    def _infer(self, feeds: dict[str, Array]) -> Array:
        return self._run([self._output], feeds)[0]

    def infer_all(self, feeds: Mapping[str, Array]) -> list[Array]:
        """See ``PartsRunner``."""
        return self._run(None, feeds)

    def _run(self, names: list[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            outputs: list[Array] = self._session.run(names, dict(feeds))
        except Exception as error:  # see _open
            raise _failure("run", self._file, error) from error
        return outputs


def optimized_operators(file: Path, *, threads: int | None = None) -> list[str]:
    """Operator of every node of an ONNX file after ONNX Runtime has optimized it for this CPU, with the options of every session here.

    Raises EnvironmentProblem (onnxruntime is missing) and ArtifactError (a graph that it does not load).
    """
    ort = ONNXRUNTIME.load()
    written = read_onnx(file)
    options = _session_options(ort, optimized=True, threads=threads, config=_session_config(written))
    with tempfile.TemporaryDirectory(prefix="dq-deploy-optimized-") as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        _open(ort, file, written, ["CPUExecutionProvider"], options)
        model = read_onnx(Path(options.optimized_model_filepath))
    return [node.op_type for node in model.graph.node]


def _missing_provider(requested: str, found: Sequence[str]) -> EnvironmentProblem:
    hint = f"pip uninstall {ONNXRUNTIME.distributions[0]} && {CUDA.install}" if requested.startswith(("CUDA", "Tensorrt")) else None
    return EnvironmentProblem(f"onnxruntime does not use provider {requested} here; it has {', '.join(found)}", hint)


def _session_config(model: Any) -> dict[str, str]:
    """``SESSION_CONFIG`` as this graph and CPU take it: exact sums refuse weights in blocks, and have nothing to do beside them."""
    nodes, fp8 = model.graph.node, any(tensor.data_type == tensor.FLOAT8E4M3FN for tensor in model.graph.initializer)
    blocks = any(node.op_type == "DequantizeLinear" and any(a.name == "block_size" and a.i for a in node.attribute) for node in nodes)
    found = {key: value for key, value in SESSION_CONFIG.items() if key != _EXACT or (saturates() and not blocks)}
    return found | (_FP8_CONFIG if fp8 else {})


def _session_options(ort: Any, optimized: bool, threads: int | None, config: dict[str, str]) -> Any:
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.log_severity_level = 3  # errors only: a warning for each node it cannot fuse is no news to a user
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads is {threads}, and at least 1 is needed")
        options.intra_op_num_threads = threads
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return options


def _open(ort: Any, file: Path, model: Any, providers: list[str], options: Any) -> Any:
    """A session of a file whose graph is ``model``."""
    fp4 = any(entry.domain == FP4_DOMAIN for entry in model.opset_import)
    exact = _exact(file, options) if fp4 or saturates() else None
    try:
        return ort.InferenceSession(exact or str(file), options, providers=providers)
    except Exception as error:  # onnxruntime's own exceptions have no common base below this one
        raise _failure("load", file, error) from error


def _exact(file: Path, options: Any) -> bytes | None:
    """The graph with products that are exact on this CPU, for a session that finds the file's data by ``options``; None: it has none."""
    model = read_ir(file)
    if not for_this_cpu(model):
        return None
    tensors = (value.const_value for value in model.graph.initializers.values())
    folder = next((tensor.base_dir for tensor in tensors if isinstance(tensor, ir.ExternalTensor)), file.parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _failure(what: str, file: Path, error: Exception) -> DqDeployError:
    """One of our errors from onnxruntime's: its first line, since what follows is a C++ stack."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if memory := out_of_memory(error):
        return ResourceError(f"onnxruntime cannot {what} {file}: {memory.message}", "try a smaller batch")
    return ArtifactError(f"onnxruntime cannot {what} {file}: {reason}")


def _spec(value: Any, file: Path, entries: int | None) -> InputSpec:
    if value.type not in DTYPES:
        raise ArtifactError(f"{file}: input '{value.name}' is a {value.type}, which no diffusion model takes")
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return InputSpec(value.name, shape, np.dtype(DTYPES[value.type]), entries=entries)
