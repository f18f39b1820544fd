"""Trained weights in a work folder outside of the repository, and random ones with the statistics of trained ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

WEIGHTS = "weights.safetensors"
_NOTHING = 1e-3  # of the size that keeps a signal's variance: EDM begins with 1e-5 where others have zeros


def work_folder() -> Path:
    """Where weights, checkpoints and bundles lie: the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dq-deploy" / "networks"


def trained_weights(name: str) -> dict[str, torch.Tensor] | None:
    """The weights that ``train`` has made, None where it has not."""
    file = work_folder() / "trained" / name / WEIGHTS
    return load_file(file) if file.is_file() else None


@torch.no_grad()
def make_sane(model: nn.Module, shape: tuple[int, ...], conditions: Mapping[str, torch.Tensor], scheduler: Any) -> None:
    """Give a fresh network weights like trained ones, in place: no layer that is nothing at all, and an output of unit variance.

    Many layers begin at zero so that a block begins as nothing: an untrained network would be judged without them. Factors of
    normalizations spread as they do in training, log-normally.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and float(parameter.std()) * parameter[0].numel() ** 0.5 < _NOTHING:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
        elif parameter.dim() == 1 and bool((parameter == 1).all()):
            parameter.copy_(torch.exp(0.3 * torch.randn(parameter.shape, generator=generator)))
        elif parameter.dim() == 1 and not parameter.any() and name.endswith("bias"):
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    scheduler.set_timesteps(4)
    last, size = _last_layer(model, shape, conditions, scheduler.timesteps.float().repeat(2))
    last.weight.div_(size)
    if last.bias is not None:
        last.bias.div_(size)


def _last_layer(model: nn.Module, shape: tuple[int, ...], conditions: Mapping[str, torch.Tensor],
                timesteps: torch.Tensor) -> tuple[Any, float]:  # fmt: skip
    """The product that is computed last, and the output's standard deviation."""
    called: list[nn.Module] = []
    products = [m for m in model.modules() if isinstance(getattr(m, "weight", None), torch.Tensor) and m.weight.dim() >= 2]  # type: ignore[operator]
    hooks = [module.register_forward_hook(lambda module, _inputs, _output: called.append(module)) for module in products]
    sample = torch.randn(len(timesteps), *shape, generator=torch.Generator().manual_seed(1))
    output = model(sample, timesteps, **{name: value[: len(timesteps)] for name, value in conditions.items()})
    for hook in hooks:
        hook.remove()
    tensor = output if isinstance(output, torch.Tensor) else output[0]
    return called[-1], float(tensor.std())
