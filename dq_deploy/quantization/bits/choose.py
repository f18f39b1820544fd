"""``quantize --auto-bits``: which layers deserve 8 bits when the others have the preset's, under a budget of size or of error.

Each layer's rounding is measured alone (``sensitivity.py``); errors of different layers are taken to add up at the output, and those are
raised to 8 bits that leave the least sum (``solve.py``). In an integer engine codes of up to 4 bits take half a byte and all others one, so
raising a layer from 5, 6 or 7 bits, or a product of two activations, costs no byte.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from pydantic import BaseModel

from ...errors import UsageError
from ...formats import layer_bytes, of_bits
from ...progress import Progress, silent
from ..calibration.source import Request
from ..config import QuantizeConfig
from ..graph.products import GraphLayer
from ..graph.skip_halves import name_matches
from ..prepare import prepare
from ..running.ambient import default_torch
from ..running.device import exact_products, find_device
from .budget import FLOAT_BYTES, WeightBudget
from .sensitivity import BitPair, Sensitivity, measure_sensitivities
from .solve import Setting, least_error

RAISED = 8


class LayerChoice(BaseModel):
    """A layer, its bits, and the share of the predicted error power that it has with the preset's bits, in the mean over the samples."""

    layer: str
    weight_bits: int
    activation_bits: int
    raised: bool
    error_share: float


class BitChoice(BaseModel):
    """What was chosen. ``keep`` goes into the configuration; SNRs are predictions for the network before dilation and distillation.

    Bytes are those of weights, scales, biases and corrections as an engine stores them; ``float_bytes`` 4 for each parameter.
    """

    keep: dict[str, int]
    layers: list[LayerChoice]
    weights_bytes: int
    float_bytes: int
    snr_db: float
    snr_db_lowest: float
    snr_db_highest: float


@default_torch()
def choose_bits(source: Any, budget: str, *, preset: str = "w4a8", device: str = "cpu", progress: Progress = silent,
                **arguments: Any) -> BitChoice:  # fmt: skip
    """Choose the layers of ``source`` that get 8 bits, the others keeping ``preset``'s, so that ``budget`` holds.

    ``budget`` is "1.6MB", "0.18x" (of the float32 weights) or "32dB"; the other arguments are those of ``quantize``, which takes the
    result's ``keep``.

    Raises UsageError (a budget that no choice meets, with what can be had) and whatever ``quantize`` raises of a source.
    """
    request, options = Request.split(arguments)
    limit, config = WeightBudget.parse(budget, "--auto-bits", snr=True), QuantizeConfig.build(preset, **options)
    if config.codebook is not None:
        raise UsageError("--auto-bits measures layers of integer weights, and the preset has codebooks",
                         "choose --preset w4a8, or say which layers have 8 bits: --keep 'PATTERN=8'")  # fmt: skip
    if config.products == "nvfp4":
        raise UsageError("--auto-bits raises integers to 8 bits, and preset nvfp4 chooses its own FP8 layers",
                         "leave it out, or say which layers have 8 bits: --keep 'PATTERN=8'")  # fmt: skip
    if config.low_rank:
        raise UsageError("a layer that is raised to 8 bits has no low-rank branch, so what is measured with branches would not hold",
                         "choose bits first, and quantize with these: --keep LAYER=8 and --low-rank")  # fmt: skip
    if config.weight_bits >= RAISED:
        raise UsageError(f"the preset gives every layer {config.weight_bits} bits already", "choose --preset w4a8, w4a4 or w6a6")
    prepared = prepare(source, config, request, progress)
    prepared.to(find_device(device))
    patterns = list(options.get("keep") or {})  # what the user has decided is not a choice

    def settings(layer: GraphLayer) -> list[BitPair]:
        return _settings(layer)[: 1 if any(name_matches(layer.name, pattern) for pattern in patterns) else 2]

    with exact_products():
        measured, _ = measure_sensitivities(prepared, settings, progress)
    parameters = sum(tensor.numel() for tensor in prepared.float_graph.state_dict().values())
    return choose(measured, {layer.name: settings(layer) for layer in prepared.plan.quantized}, limit, parameters)


def _settings(layer: GraphLayer) -> list[BitPair]:
    """The bits that the plan gives, and the bits to raise them to if that is not the same."""
    given = layer.weight_bits, layer.activation_bits
    raised = max(layer.weight_bits, RAISED), max(layer.activation_bits, RAISED)
    return list(dict.fromkeys((given, raised)))


def choose(measured: Sequence[Sensitivity], settings: dict[str, list[BitPair]], budget: WeightBudget, parameters: int) -> BitChoice:
    """The layers to raise, from what was measured; ``parameters`` are the model's."""
    low = {x.layer: x.noise[settings[x.layer][0]] for x in measured}
    high = {x.layer: x.noise[settings[x.layer][-1]] for x in measured}
    total = torch.stack(list(low.values())).sum(dim=0).clamp(min=1e-30)
    options = [[Setting(_bytes(x, bits), float((x.noise[bits] / total).mean())) for bits in settings[x.layer]] for x in measured]
    rest = max(2 * (parameters - sum(x.weights for x in measured)), 0)

    def raised_within(size: float) -> set[str]:
        chosen = least_error(options, size - rest) or [0] * len(measured)
        return {x.layer for x, index in zip(measured, chosen, strict=True) if index}

    least, most = (rest + sum(pick(option.size for option in layer) for layer in options) for pick in (min, max))
    size = limit = budget.bytes_of(parameters)
    if budget.kind == "snr":  # the fewest bytes that reach it
        size = least + bisect_left(range(least, most), True, key=lambda size: _snr(low, high, raised_within(size)) >= limit)
    raised = raised_within(size)
    result = BitChoice(
        keep={name: RAISED for name in low if name in raised},
        layers=[_record(x, settings[x.layer][-1 if x.layer in raised else 0], x.layer in raised, low, total) for x in measured],
        weights_bytes=rest + sum(_bytes(x, settings[x.layer][-1 if x.layer in raised else 0]) for x in measured),
        float_bytes=FLOAT_BYTES * parameters,
        snr_db=_snr(low, high, raised),
        snr_db_lowest=_snr(low, high, set()),
        snr_db_highest=_snr(low, high, set(low)),
    )
    _check_met(result, budget, limit)
    return result


def _bytes(layer: Sensitivity, bits: BitPair) -> int:
    return layer_bytes(of_bits(bits[0]), layer.weights, layer.channels)


def _snr(low: dict[str, torch.Tensor], high: dict[str, torch.Tensor], raised: set[str]) -> float:
    """Predicted SNR in dB, the median over the samples."""
    noise = torch.stack([high[name] if name in raised else low[name] for name in low]).sum(dim=0).clamp(min=1e-30)
    return float(median((-10 * noise.log10()).tolist()))


def _record(layer: Sensitivity, bits: BitPair, raised: bool, low: dict[str, torch.Tensor], total: torch.Tensor) -> LayerChoice:
    share = float((low[layer.layer] / total).mean())
    return LayerChoice(layer=layer.layer, weight_bits=bits[0], activation_bits=bits[1], raised=raised, error_share=share)


def _check_met(result: BitChoice, budget: WeightBudget, limit: float) -> None:
    if budget.kind == "snr":
        if result.snr_db < limit:
            raise UsageError(
                f"no choice of bits reaches {limit:g} dB: with every layer at {RAISED} bits {result.snr_db_highest:.1f} dB are predicted",
                "ask for less, or choose a preset with more activation bits",
            )
    elif result.weights_bytes > limit:
        smallest = result.weights_bytes
        raise UsageError(
            f"the weights take {smallest / 1e6:.3g} MB ({smallest / result.float_bytes:.3f}x) with no layer raised, and the budget is "
            f"{limit / 1e6:.3g} MB ({limit / result.float_bytes:.3f}x)",
            "allow more, or choose a preset with fewer weight bits",
        )
