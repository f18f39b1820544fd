"""What the PyTorch reference computes inside, recorded for one batch: every quantizer's input and codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Interpreter, Node

from ..quantization.checkpoint import Checkpoint
from ..quantization.layers import Quantized
from ..quantization.numerics import per_row


@dataclass(frozen=True)
class QuantizerRecord:
    """One quantizer at one batch: its input, its int8 codes (as floats, zero-point included) and its zero-point [N]."""

    x: torch.Tensor
    codes: torch.Tensor
    zero_point: torch.Tensor
    scale: torch.Tensor


@torch.no_grad()
def record(checkpoint: Checkpoint, inputs: Mapping[str, torch.Tensor]) -> dict[str, QuantizerRecord]:
    """Run the reference forward and keep what goes in and out of every quantizer."""
    recorder = _Recorder(checkpoint)
    recorder.run(*[inputs[name] for name in checkpoint.details["inputs"]])
    return recorder.records


class _Recorder(Interpreter):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.model)
        self.quantizers = checkpoint.quantizers
        self.records: dict[str, QuantizerRecord] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Quantized):
            name = n.meta["quantizer"]
            x, timestep = (self.env[a] for a in n.args if isinstance(a, Node))
            _, zero_point = self.quantizers[name].rows(timestep)
            codes = result.codes + per_row(zero_point, result.codes)
            self.records[name] = QuantizerRecord(x, codes, zero_point, result.scale)
        return result
