"""Quantized networks as denoisers: one call for every tool's artefact."""

from __future__ import annotations

from pathlib import Path

import torch

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


def _checkpoint(path: Path, device: str) -> Denoiser:
    checkpoint = load_checkpoint(path)
    model, names = checkpoint.model.to(device), checkpoint.details["inputs"]

    def call(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        values = {**conditions, names[0]: sample, "timestep": timestep}
        output: torch.Tensor = model(*[values[name] for name in names])
        return output

    return call
