"""``export --weight-budget``: of a checkpoint of several widths, a width for each layer under a budget of bytes.

Each layer is narrowed alone in the quantized network, on held-out samples that the checkpoint carries, and what this adds to the error of
the network's output is measured (``bits/sensitivity.py``); errors of different layers are taken to add up, and the widths are those of the
least sum (``bits/solve.py``). What the whole then is, is measured too (docs/decisions/widths.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from ..artifacts.details import WidthChoice
from ..errors import UsageError
from ..formats import layer_bytes, of_bits
from ..progress import Progress, silent
from .bits.aspects import PREDICTION
from .bits.budget import FLOAT_BYTES, WeightBudget
from .bits.sensitivity import one_at_a_time, some_inputs
from .bits.solve import Setting, least_error
from .checkpoint import Checkpoint
from .graph.calls import as_model
from .graph.insertion import decode
from .pipeline import per_timestep_snr
from .weights import QuantizedWeight
from .widths import at_width, check_several, nested_layers, parameters, weights_bytes

Noise = Mapping[str, Mapping[int, torch.Tensor]]
"""By layer and fewer bits than its weights have: what they add to the error of the network's output, relative to it, in each sample [n]."""
_BATCH = 16


@torch.no_grad()
def choose_widths(checkpoint: Checkpoint, budget: str, progress: Progress = silent) -> tuple[dict[str, int], WidthChoice]:
    """A width for each layer of ``checkpoint`` so that its weights keep a ``budget`` such as "1.6MB" or "0.18x", and what that costs.

    Raises UsageError for a checkpoint of one width, and for a budget that no choice of widths keeps.
    """
    limit = WeightBudget.parse(budget, "--weight-budget", snr=False)
    known = check_several(checkpoint)
    layers = nested_layers(checkpoint.model)
    count = parameters(checkpoint.model)
    offered = {name: _worth_having(layer, known) for name, layer in layers.items()}
    _check_possible(checkpoint, offered, limit.bytes_of(count), count)
    noise = narrowing_noise(checkpoint, offered, progress)
    shares = error_shares(noise)
    width = _best(checkpoint, offered, shares, limit.bytes_of(count))
    most = {name: round(share[min(share)], 6) for name, share in shares.items() if share}
    with at_width(checkpoint.model, width, most):
        snr = per_timestep_snr(as_model(checkpoint.model), checkpoint.reference(), progress)
    return width, WidthChoice(
        budget=budget, weights_bytes=weights_bytes(checkpoint.model, width), float_bytes=FLOAT_BYTES * count, snr_db=snr,
        error_share=most,
    )  # fmt: skip


def _worth_having(layer: QuantizedWeight, known: Sequence[int]) -> list[int]:
    """Of a layer's widths those that save bytes, descending: of several that take the same, such as 8 and 6 bits, the widest."""
    widest: dict[int, int] = {}
    for bits in sorted(known, reverse=True):
        widest.setdefault(_bytes(layer, bits), bits)
    return list(widest.values())


def _bytes(layer: QuantizedWeight, bits: int) -> int:
    codes, scale = layer.stored
    return layer_bytes(of_bits(bits), codes.numel(), scale.numel())


def _check_possible(checkpoint: Checkpoint, offered: Mapping[str, Sequence[int]], limit: float, count: int) -> None:
    """Raise UsageError where widths save nothing, or not enough."""
    path = checkpoint.artifact.path
    if all(len(widths) == 1 for widths in offered.values()):
        raise UsageError(f"no width of {path} takes fewer bytes than another: engines store 5 to 8 bits in a byte",
                         "quantize with --matryoshka 8,4")  # fmt: skip
    least = weights_bytes(checkpoint.model, {name: widths[-1] for name, widths in offered.items()})
    if least > limit:
        whole = FLOAT_BYTES * count
        raise UsageError(
            f"the weights of {path} take {least / 1e6:.3g} MB ({least / whole:.3f}x) at the least, and the budget is {limit / 1e6:.3g} MB "
            f"({limit / whole:.3f}x)",
            "allow more, or quantize with a narrower width: --matryoshka 8,4,2",
        )


def _best(checkpoint: Checkpoint, offered: Mapping[str, Sequence[int]], shares: Mapping[str, Mapping[int, float]],
          limit: float) -> dict[str, int]:  # fmt: skip
    """The width of each layer whose errors add up to the least."""
    layers = nested_layers(checkpoint.model)
    settings = [[Setting(_bytes(layers[name], bits), shares[name].get(bits, 0.0)) for bits in widths] for name, widths in offered.items()]
    rest = weights_bytes(checkpoint.model) - sum(_bytes(layer, layer.bits) for layer in layers.values())
    chosen = least_error(settings, limit - rest)
    assert chosen is not None  # the least was looked at
    return {name: widths[index] for (name, widths), index in zip(offered.items(), chosen, strict=True)}


def narrowing_noise(checkpoint: Checkpoint, offered: Mapping[str, Sequence[int]], progress: Progress = silent) -> Noise:
    """What the widths ``offered`` of each layer, descending from its own, add to the error where all other layers have all their bits.

    On the first held-out seeds, at some timesteps.
    """
    layers, names = nested_layers(checkpoint.model), checkpoint.details.inputs
    nodes = {node.name: name for node in checkpoint.model.graph.nodes if (name := _layer(node)) in layers}
    inputs = list(some_inputs(checkpoint.reference(), names).values())
    parts = torch.arange(len(inputs[0])).split(_BATCH)
    found: dict[str, dict[int, list[torch.Tensor]]] = {name: {bits: [] for bits in widths[1:]} for name, widths in offered.items()}
    instead = {node: {bits: _with_width(layers[name], bits) for bits in offered[name][1:]} for node, name in nodes.items()}
    with progress("what each layer loses by its width", len(nodes) * len(parts)) as advance:
        for part in parts:
            for node, noise in one_at_a_time(checkpoint.model, [value[part] for value in inputs], instead, PREDICTION.noise):
                for bits, value in noise.items():
                    found[nodes[node]][bits].append(value)
                advance(1, nodes[node])
    return {name: {bits: torch.cat(values) for bits, values in tried.items()} for name, tried in found.items()}


def _layer(node: Node) -> str | None:
    return decode(str(node.target)) if node.op == "call_module" else None


def error_shares(noise: Noise) -> dict[str, dict[int, float]]:
    """What a layer has of the error that all layers together add with their fewest bits, at each of its widths: the mean over samples."""
    total = torch.stack([tried[min(tried)] for tried in noise.values() if tried]).sum(dim=0).clamp(min=1e-30)
    return {name: {bits: float((value / total).mean()) for bits, value in tried.items()} for name, tried in noise.items()}


def _with_width(layer: QuantizedWeight, bits: int) -> Callable[..., Any]:
    def compute(*arguments: Any) -> Any:
        layer.width = bits
        try:
            return layer(*arguments)
        finally:
            layer.width = None

    return compute
