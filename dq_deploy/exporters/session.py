"""ONNX Runtime as the reference: a graph node by node, as it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem
from ..versions import install_command


def install_onnxruntime() -> str:
    """The command, for machines without and with an NVIDIA GPU."""
    return f"{install_command('cpu')}, or with an NVIDIA GPU {install_command('gpu')}; never both"


def session_as_written(model: bytes | Path, *, threads: int | None = None, why: str = "", hint: str | None = None) -> Any:
    """A session on the CPU that fuses and folds nothing, of a serialized graph or a file.

    Raises EnvironmentProblem without ONNX Runtime, saying ``why`` it is needed and what to do (``hint``).
    """
    try:
        import onnxruntime
    except ImportError:
        raise EnvironmentProblem(f"onnxruntime is not installed{why}", hint or install_onnxruntime()) from None
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3  # errors only
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"])
