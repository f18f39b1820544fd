"""The alternative to the nearest row: scale and zero-point between two calibrated timesteps."""

from __future__ import annotations

from functools import partial

import torch

from dq_deploy.quantization import numerics
from dq_deploy.quantization.layers import ActivationQuantizer


def interpolated(quantizer: ActivationQuantizer, timesteps: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero-point [N] of a frozen quantizer: linear in the timestep, the scale by its logarithm, the zero-point then rounded.

    ``timesteps`` [T] ascend; beyond them the outermost row is taken.
    """
    qmin, qmax = numerics.code_range(quantizer.bits)
    t = timestep.reshape(-1).float().clamp(float(timesteps[0]), float(timesteps[-1]))
    upper = torch.searchsorted(timesteps, t).clamp(1, len(timesteps) - 1)
    low, high = timesteps[upper - 1], timesteps[upper]
    share = (t - low) / (high - low)
    log_scale, zero_point = quantizer.scale_table().log(), quantizer.zero_point_table().float()
    scale = torch.lerp(log_scale[upper - 1], log_scale[upper], share).exp()
    return scale, torch.lerp(zero_point[upper - 1], zero_point[upper], share).round().clamp(qmin, qmax)


def interpolate_rows(model: torch.nn.Module, timesteps: torch.Tensor) -> None:
    """Make every quantizer of a frozen model interpolate. In place."""
    for module in model.modules():
        if isinstance(module, ActivationQuantizer) and not module.fixed:
            module.rows = partial(interpolated, module, timesteps)  # type: ignore[method-assign]
