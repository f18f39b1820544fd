"""Quantized networks as denoisers: one call for every tool's artefact."""

from __future__ import annotations

from pathlib import Path

import torch

import dq_deploy
from dq_deploy.engines.openvino import OpenVinoRunner, int8_saturates
from dq_deploy.errors import EnvironmentProblem, UsageError
from dq_deploy.quantization.checkpoint import load_checkpoint

from .drawing import Denoiser
from .methods import Method
from .models import Reference
from .peers import nncf_denoiser, onnxruntime_denoiser

CHECKPOINT = "checkpoint"


def denoiser(method: Method, reference: Reference, folder: Path, device: str) -> Denoiser:
    """The denoiser that a cell's folder holds. Raises as the tool's loader does."""
    if method.tool == "onnxruntime":
        return onnxruntime_denoiser(folder, reference.input_names)
    if method.tool == "nncf":
        return nncf_denoiser(folder, reference.input_names)
    return _checkpoint(folder / CHECKPOINT, device)


def integer_denoiser(method: Method, folder: Path, *, threads: int) -> Denoiser:
    """The checkpoint of a cell's folder as a user deploys it: exported, and run by OpenVINO on INT8 kernels.

    Raises UsageError for another tool's model, EnvironmentProblem on a CPU whose INT8 kernels saturate.
    """
    if method.tool != "dq-deploy":
        raise UsageError(f"{method.label} is no checkpoint that could be exported", "draw it by torch")
    if int8_saturates():
        raise EnvironmentProblem("the INT8 kernels of this CPU saturate: it has no VNNI", "draw by torch")
    bundle = folder / "bundle"
    if not bundle.exists():
        dq_deploy.export(folder / CHECKPOINT, bundle, target="tensorrt", dtype="fp32", weight_storage="int8")
    names = load_checkpoint(folder / CHECKPOINT).details["inputs"]
    runner = OpenVinoRunner(bundle, threads=threads, integer=True)

    def call(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        values = {**conditions, names[0]: sample, "timestep": timestep}
        return torch.from_numpy(runner.run({name: values[name].contiguous().numpy() for name in names}))

    return call


def _checkpoint(path: Path, device: str) -> Denoiser:
    checkpoint = load_checkpoint(path)
    model, names = checkpoint.model.to(device), checkpoint.details["inputs"]

    def call(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        values = {**conditions, names[0]: sample, "timestep": timestep}
        output: torch.Tensor = model(*[values[name] for name in names])
        return output

    return call
