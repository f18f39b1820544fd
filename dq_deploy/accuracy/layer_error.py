"""Error of every layer at every calibrated timestep, of the PyTorch quantized forward on the checkpoint's held-out samples.

Two questions, two figures. How wrong is a layer's *output* by then: SNR against the same layer's output in the float model, for the same
network input, so that it holds all error made before the layer too. And how much does the rounding of its *activation* add by itself: SNR
of each quantizer's codes against what it read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ..decibels import ratio_db
from ..errors import ArtifactError, UsageError
from ..progress import Progress, silent
from ..quantization.calibration.trajectories import Trajectories
from ..quantization.checkpoint import Checkpoint
from ..quantization.choices import SkipHalves
from ..quantization.float_source import load_float
from ..quantization.graph.insertion import decode
from ..quantization.graph.low_rank import branch_off
from ..quantization.graph.products import find_layers
from ..quantization.graph.skip_halves import arrange_skip_halves
from ..quantization.initial.rotation_choice import take_rotations
from ..quantization.numerics import per_channel, per_sample
from ..quantization.quantizers import ActivationQuantizer, Quantized

# Every layer's output is held at once, in one pass of the float model: for a large model's samples, one seed at a time.
_PASS_ELEMENTS = 1 << 14

Keep = Callable[[str, torch.Tensor], None]


@dataclass
class LayerErrors:
    """SNR in dB at each of ``timesteps`` [T], None where the signal is zero.

    ``output_db`` by layer, empty with the reason in ``no_output`` when there is no float model to compare with; ``activation_db`` by
    quantizer. ``samples`` is the number of network inputs behind each figure.
    """

    timesteps: list[float]
    samples: int
    output_db: dict[str, list[float | None]] = field(default_factory=dict)
    activation_db: dict[str, list[float | None]] = field(default_factory=dict)
    no_output: str | None = None


@torch.no_grad()
def layer_errors(checkpoint: Checkpoint, *, table_rows: Sequence[int] | None = None, graph: GraphModule | None = None,
                 progress: Progress = silent) -> LayerErrors:  # fmt: skip
    """Measure every layer of a checkpoint, with the float model that its manifest names where that can be loaded again.

    ``table_rows`` of the table, by default all; ``graph`` is ``float_graph(checkpoint)`` where the caller has it.

    Raises ArtifactError when the float model's layers are not those of the checkpoint.
    """
    reference = checkpoint.reference()
    table_rows = range(len(reference.timesteps)) if table_rows is None else table_rows
    found = LayerErrors(reference.timesteps[list(table_rows)].tolist(), reference.samples.shape[1])
    passes = list(_passes(reference))
    with progress("error of every layer", len(table_rows) * len(passes) + 1) as advance:
        float_run = None
        try:
            float_run = _FloatRun(checkpoint, graph or float_graph(checkpoint))
        except (UsageError, ArtifactError) as error:
            found.no_output = error.message
        advance(1, "float model loaded")
        quantized = _QuantizedRun(checkpoint)
        sums = _Sums(_folded_layers(checkpoint))
        for row in table_rows:
            for part in passes:
                inputs = list(checkpoint.inputs(reference, row, part).values())
                expected = float_run.outputs(inputs) if float_run else {}
                quantized.run_and_compare(inputs, expected, row, sums)
                advance(1, f"timestep {float(reference.timesteps[row]):g}")
    found.output_db = sums.output_db()
    found.activation_db = sums.activation_db()
    return found


def _passes(reference: Trajectories) -> Iterator[slice]:
    """The samples in passes; the halves of a guided seed stay together."""
    size = max(1, _PASS_ELEMENTS // reference.samples[0, 0].numel() // reference.per_seed) * reference.per_seed
    for start in range(0, reference.samples.shape[1], size):
        yield slice(start, start + size)


def _folded_layers(checkpoint: Checkpoint) -> set[str]:
    """Layers whose output channels were divided by a later layer's dilation: what they give differs from the float model's by design."""
    return {name for record in checkpoint.details.dilation for name in record.folded_into} & checkpoint.layers.keys()


class _FloatRun(Interpreter):
    """The float model, captured and split as it was when it was quantized; gives each layer's output."""

    def __init__(self, checkpoint: Checkpoint, graph: GraphModule) -> None:
        self.names = {layer.node.name: layer.name for layer in find_layers(graph)}
        missing = sorted(checkpoint.layers.keys() - set(self.names.values()))
        if missing:
            raise ArtifactError(f"the float model has no layer {', '.join(missing[:5])}, which the checkpoint has")
        self.kept: dict[str, torch.Tensor] = {}
        super().__init__(graph)

    def outputs(self, inputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        self.kept = {}
        self.run(*inputs)
        return self.kept

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.name in self.names:
            self.kept[self.names[n.name]] = result
        return result


def float_graph(checkpoint: Checkpoint) -> GraphModule:
    """The float model of a checkpoint, halves split, branches beside layers and inputs rotated as then; raises as ``load_float``."""
    graph = load_float(checkpoint).graph
    arrange_skip_halves(graph, SkipHalves(checkpoint.details.skip_halves.mode))
    if names := set(checkpoint.details.branched):
        layers = [layer for layer in find_layers(graph) if layer.name in names]
        branch_off(graph, layers, checkpoint.artifact.manifest.low_rank)
    if checkpoint.details.rotation:
        take_rotations(graph, list(find_layers(graph)), checkpoint.details.rotation)
    return graph


class _QuantizedRun(Interpreter):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.model)
        self.quantizers = checkpoint.quantizers
        self.layers = checkpoint.layers
        self.expected: Mapping[str, torch.Tensor] = {}
        self.row, self.sums = 0, _Sums(set())

    def run_and_compare(self, inputs: list[torch.Tensor], expected: Mapping[str, torch.Tensor], row: int, sums: _Sums) -> None:
        self.expected, self.row, self.sums = expected, row, sums
        self.run(*inputs)

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Quantized):
            name = n.meta["quantizer"]
            x = next(self.env[a] for a in n.args if isinstance(a, Node))
            self.sums.add_activation(name, self.row, x, _dequantized(self.quantizers[name], result))
        elif n.op == "call_module" and (layer := decode(str(n.target))) in self.layers and layer in self.expected:
            axis = self.layers[layer].channel_axis
            self.sums.add_output(layer, self.row, self.expected[layer], result, axis)
        return result


def _dequantized(quantizer: ActivationQuantizer, value: Quantized) -> torch.Tensor:
    """What the codes stand for, in units of what the quantizer read."""
    x = value.codes * per_sample(value.scale, value.codes)
    return x if quantizer.fixed else x * per_channel(quantizer.dilation, x, quantizer.axis)


class _Sums:
    """Energies of signal, product and value: by name and row, a number each, or for a folded layer one for each output channel."""

    def __init__(self, folded: set[str]) -> None:
        self.folded = folded
        self.outputs: dict[str, dict[int, torch.Tensor]] = {}  # [3, C]: Σ f², Σ f·q, Σ q²; C is 1 unless folded
        self.activations: dict[str, dict[int, torch.Tensor]] = {}  # [2]: Σ x², Σ (x − x̂)²

    def add_output(self, name: str, row: int, expected: torch.Tensor, got: torch.Tensor, axis: int) -> None:
        f, q = (t.double().movedim(axis, 0) for t in (expected, got))
        f, q = (t.flatten(1) if name in self.folded else t.reshape(1, -1) for t in (f, q))
        _add(self.outputs, name, row, torch.stack([(f * f).sum(1), (f * q).sum(1), (q * q).sum(1)]))

    def add_activation(self, name: str, row: int, x: torch.Tensor, got: torch.Tensor) -> None:
        _add(self.activations, name, row, torch.stack([x.double().pow(2).sum(), (x.double() - got).pow(2).sum()]))

    def output_db(self) -> dict[str, list[float | None]]:
        found = {}
        for name, by_row in self.outputs.items():
            sums = torch.stack([by_row[row] for row in sorted(by_row)])  # [T, 3, C]
            gain = torch.ones_like(sums[0, 0])
            if name in self.folded:  # the s that a channel was divided by is not stored: the least-squares factor over all timesteps
                gain = sums[:, 1].sum(0) / sums[:, 2].sum(0).clamp(min=1e-300)
            noise = (sums[:, 0] - 2 * gain * sums[:, 1] + gain**2 * sums[:, 2]).sum(1)
            found[name] = [_decibels(float(s), float(e)) for s, e in zip(sums[:, 0].sum(1), noise, strict=True)]
        return found

    def activation_db(self) -> dict[str, list[float | None]]:
        return {name: [_decibels(*by_row[row].tolist()) for row in sorted(by_row)] for name, by_row in self.activations.items()}


def _add(sums: dict[str, dict[int, torch.Tensor]], name: str, row: int, value: torch.Tensor) -> None:
    by_row = sums.setdefault(name, {})
    by_row[row] = by_row[row] + value if row in by_row else value


def _decibels(signal: float, noise: float) -> float | None:
    """10·log10(signal / noise), rounded as far as samples carry it; None for no signal."""
    # Sums of squares in double cancel to about 1e-16 of the signal, and may end below zero: no noise.
    return round(ratio_db(signal, max(noise, 0.0)), 3) if signal > 0 else None
