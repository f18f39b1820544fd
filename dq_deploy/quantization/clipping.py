"""Which fraction of the values that a quantized network sees is outside of what its codes can say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.fx import GraphModule

from . import numerics
from .graph.modules import named_quantizers
from .quantizers import ActivationQuantizer, Quantized


class Clipped:
    """Counts by quantizer and row of its table."""

    def __init__(self) -> None:
        self._counts: dict[str, torch.Tensor] = {}  # [2, T]: values, and those of them that were clipped

    def add(self, name: str, quantizer: ActivationQuantizer, x: torch.Tensor, timestep: torch.Tensor) -> None:
        """Count the values x [N·frames, ...] at timesteps [N]."""
        x = quantizer.divided(x)
        scale, zero_point = quantizer.scales(x, timestep)
        low, high = ((end - zero_point) * scale for end in quantizer.format.unclipped_range())
        outside = (x < numerics.per_sample(low, x)) | (x > numerics.per_sample(high, x))
        outside = outside.reshape(len(timestep), -1)
        found = torch.stack([torch.full_like(timestep, outside.shape[1], dtype=torch.float64), outside.sum(dim=1).double()])
        counts = self._counts.setdefault(name, torch.zeros(2, quantizer.table_rows, dtype=torch.float64))
        counts.index_add_(1, numerics.select_table_rows(timestep, quantizer.boundaries).cpu(), found.cpu())

    def fractions(self) -> dict[str, list[float]]:
        """By quantizer: the clipped fraction of its values at each row's timestep [T]; without those that clip nothing at all."""
        found = {name: (clipped / values.clamp(min=1)).tolist() for name, (values, clipped) in self._counts.items()}
        return {name: [round(fraction, 7) for fraction in fractions] for name, fractions in found.items() if any(fractions)}


@contextmanager
def counting(model: GraphModule) -> Iterator[Clipped]:
    """Count what the quantizers of ``model`` clip in all its calls."""
    clipped = Clipped()

    def hook(name: str) -> object:
        def after(module: ActivationQuantizer, args: tuple[torch.Tensor, torch.Tensor], output: Quantized) -> None:  # noqa: ARG001  a hook's
            clipped.add(name, module, *args)

        return after

    with ExitStack() as stack:
        for name, quantizer in named_quantizers(model):
            stack.callback(quantizer.register_forward_hook(hook(name)).remove)  # type: ignore[arg-type]
        yield clipped
