"""Quantized networks as denoisers: one call for every tool's artefact."""

from __future__ import annotations

from pathlib import Path

import torch

import dq_deploy
from dq_deploy.engines.openvino.int8_kernels import int8_saturates
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.errors import EnvironmentProblem
from dq_deploy.quantization.checkpoint import load_checkpoint
from dq_deploy.quantization.widths import sliced

from .drawing import Denoiser
from .methods import Method, Tool
from .models import Reference
from .peers import nncf_denoiser, onnxruntime_denoiser, torchao_denoiser
from .settings import DrawnBy

CHECKPOINT = "checkpoint"
OUTSIDE_RUNTIMES: dict[Tool, DrawnBy] = {"onnxruntime": "torch", "nncf": "openvino", "torchao": "torch"}
"""Where an outside tool's model runs, whatever was asked for: as a simulation in float, or on INT8 kernels."""


def denoiser(method: Method, reference: Reference, folder: Path, device: str, bits: int | None = None) -> Denoiser:
    """The denoiser that a cell's folder holds, with ``bits`` of its weights (None: all). Raises as the tool's loader does."""
    if method.tool == "onnxruntime":
        return onnxruntime_denoiser(folder, reference.input_names)
    if method.tool == "nncf":
        return nncf_denoiser(folder, reference.input_names)
    if method.tool == "torchao":
        return torchao_denoiser(reference)
    return _checkpoint(folder / CHECKPOINT, device, bits)


def integer_denoiser(made: Path, folder: Path, *, threads: int, bits: int | None = None) -> Denoiser:
    """The checkpoint in ``made`` as a user deploys it: exported into ``folder``, and run by OpenVINO on INT8 kernels.

    ``bits`` of its weights; None: all.

    Raises EnvironmentProblem on a CPU whose INT8 kernels saturate.
    """
    if int8_saturates():
        raise EnvironmentProblem("the INT8 kernels of this CPU saturate: it has no VNNI", "draw by torch")
    bundle = folder / "bundle"
    if not bundle.exists():
        folder.mkdir(parents=True, exist_ok=True)
        dq_deploy.export(made / CHECKPOINT, bundle, target="qdq", dtype="fp32", weight_storage="int8", weight_bits=bits)
    names = load_checkpoint(made / CHECKPOINT).details.inputs
    runner = OpenVinoRunner(bundle, threads=threads, integer=True)

    def call(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        values = {**conditions, names[0]: sample, "timestep": timestep}
        return torch.from_numpy(runner.run({name: values[name].contiguous().numpy() for name in names}))

    return call


def _checkpoint(path: Path, device: str, bits: int | None) -> Denoiser:
    checkpoint = load_checkpoint(path) if bits is None else sliced(load_checkpoint(path), bits)
    model, names = checkpoint.model.to(device), checkpoint.details.inputs

    def call(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        values = {**conditions, names[0]: sample, "timestep": timestep}
        output: torch.Tensor = model(*[values[name] for name in names])
        return output

    return call
