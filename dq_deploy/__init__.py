"""Quantizes diffusion models with per-timestep scales and takes them to integer ONNX graphs and engines.

The functions below are the Python API. Each is imported when first used, so that ``import dq_deploy`` needs neither torch nor TensorRT.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accuracy.check import CheckResult, check
    from .engines.bench import bench
    from .engines.build.engine import build_engine
    from .engines.pipeline_folder.folder import pipeline_folder
    from .engines.refit import refit
    from .engines.schedules.combine import combine
    from .engines.schedules.step_choice import StepChoice, choose_steps
    from .engines.triton import triton_repository
    from .exporters import export
    from .exporters.lint import Finding, LintResult, lint
    from .hub.load import load
    from .hub.push import push
    from .quantization import estimate, quantize
    from .quantization.bits.choose import choose_bits
    from .quantization.bits.chosen import BitChoice
    from .quantization.calling import stacked, whole_batch
    from .report.make import write_report
    from .sampling import sample
    from .sources import allow_pickles

_HOMES = {
    "BitChoice": "quantization.bits.chosen",
    "CheckResult": "accuracy",
    "Finding": "exporters.lint",
    "LintResult": "exporters.lint",
    "StepChoice": "engines.schedules.step_choice",
    "allow_pickles": "sources",
    "bench": "engines.bench",
    "build_engine": "engines.build.engine",
    "check": "accuracy",
    "choose_bits": "quantization.bits.choose",
    "choose_steps": "engines.schedules.step_choice",
    "combine": "engines.schedules.combine",
    "estimate": "quantization",
    "export": "exporters",
    "lint": "exporters.lint",
    "load": "hub.load",
    "pipeline_folder": "engines.pipeline_folder.folder",
    "push": "hub.push",
    "quantize": "quantization",
    "refit": "engines.refit",
    "sample": "sampling",
    "stacked": "quantization.calling",
    "triton_repository": "engines.triton",
    "whole_batch": "quantization.calling",
    "write_report": "report.make",
}

__all__ = [
    "BitChoice",
    "CheckResult",
    "Finding",
    "LintResult",
    "StepChoice",
    "allow_pickles",
    "bench",
    "build_engine",
    "check",
    "choose_bits",
    "choose_steps",
    "combine",
    "estimate",
    "export",
    "lint",
    "load",
    "pipeline_folder",
    "push",
    "quantize",
    "refit",
    "sample",
    "stacked",
    "triton_repository",
    "whole_batch",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dq_deploy' has no attribute '{name}'")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
