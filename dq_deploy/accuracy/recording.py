"""What the PyTorch reference computes inside, recorded for one batch: what every quantizer reads and gives, what other layers read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Interpreter, Node

from ..quantization.checkpoint import Checkpoint
from ..quantization.graph.insertion import decode
from ..quantization.numerics import per_sample
from ..quantization.quantizers import Quantized


@dataclass(frozen=True)
class QuantizerRecord:
    """One quantizer at one batch: its input, its int8 codes (as floats, zero-point included) and its zero-point [N]."""

    x: torch.Tensor
    codes: torch.Tensor
    zero_point: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class Records:
    """By quantizer what goes in and out; by layer whose activation stays float, that activation."""

    quantizers: dict[str, QuantizerRecord]
    floats: dict[str, torch.Tensor]


@torch.no_grad()
def record(checkpoint: Checkpoint, inputs: Mapping[str, torch.Tensor]) -> Records:
    """Run the reference forward on ``inputs`` [N, ...] in its order and keep what layers and quantizers read."""
    recorder = _Recorder(checkpoint)
    recorder.run(*inputs.values())
    return recorder.records


@torch.no_grad()
def layer_outputs(checkpoint: Checkpoint, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What every integer layer gives when the reference forward runs on ``inputs`` [N, ...] in its order."""
    found: dict[str, torch.Tensor] = {}
    with ExitStack() as hooks:
        for name, layer in checkpoint.layers.items():
            hooks.callback(layer.register_forward_hook(lambda _, __, output, name=name: found.update({name: output})).remove)
        checkpoint.model(*inputs.values())
    return found


class _Recorder(Interpreter):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.model)
        self.quantizers = checkpoint.quantizers
        self.submodules = dict(checkpoint.model.named_modules())
        self.records = Records({}, {})

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Quantized):
            name = n.meta["quantizer"]
            x, timestep = (self.env[a] for a in n.args if isinstance(a, Node))
            quantizer = self.quantizers[name]
            _, zero_point = quantizer.scales(quantizer.divided(x), timestep)
            codes = result.codes + per_sample(zero_point, result.codes)
            self.records.quantizers[name] = QuantizerRecord(x, codes, zero_point, result.scale)
        elif n.op == "call_module" and getattr(self.submodules[str(n.target)], "weight_only", False):
            (read,) = (self.env[a] for a in n.args if isinstance(a, Node))
            self.records.floats[decode(str(n.target))] = read
        return result
