"""``quantize --auto-bits``: which layers deserve 8 bits when the others have the preset's, under a budget of size or of error.

Each layer's rounding is measured alone (``sensitivity.py``); errors of different layers are taken to add up at the output, and those are
raised to 8 bits that leave the least sum (``solve.py``). In an integer engine codes of up to 4 bits take half a byte and all others one, so
raising a layer from 5, 6 or 7 bits, or a product of two activations, costs no byte.

Decoupled, that says only how many bytes each group of layers gets; which layers of a group are raised with them is chosen by the least sum
of errors in what the group answers for (``decoupled.py``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal, get_args

import torch

from ...errors import UsageError
from ...formats import layer_bytes, of_bits
from ...progress import Progress, silent
from ..calibration.source import Request
from ..choices import Rotation
from ..config import QuantizeConfig
from ..graph.products import GraphLayer
from ..graph.skip_halves import name_matches
from ..initial.rotation_choice import choose_rotations, take_rotations
from ..prepare import prepare
from ..running.ambient import default_torch
from ..running.device import exact_products, find_device
from .aspects import PREDICTION, Aspect
from .budget import FLOAT_BYTES, WeightBudget
from .chosen import BitChoice, GroupChoice, LayerChoice
from .decoupled import BY_PREDICTION, Judging, judging_of
from .groups import Group
from .sensitivity import BitPair, Sensitivity, few_trajectories, sensitivities_on
from .solve import Setting, least_error

RAISED = 8
SensitivityRule = Literal["snr", "decoupled"]


@default_torch()
def choose_bits(source: Any, budget: str, *, preset: str = "w4a8", sensitivity: str = "snr", device: str = "cpu",
                progress: Progress = silent, **arguments: Any) -> BitChoice:  # fmt: skip
    """Choose the layers of ``source`` that get 8 bits, the others keeping ``preset``'s, so that ``budget`` holds.

    ``budget`` is "1.6MB", "0.18x" (of the float32 weights) or "32dB"; ``sensitivity`` is "snr", by which all layers are judged by the
    prediction, or "decoupled", where those of attention to a condition and of attention over frames are judged by what they answer for. The
    other arguments are those of ``quantize``, which takes the result's ``keep``.

    Raises UsageError (a budget that no choice meets, with what can be had) and whatever ``quantize`` raises of a source.
    """
    if sensitivity not in get_args(SensitivityRule):
        raise UsageError(f"sensitivity is {' or '.join(get_args(SensitivityRule))}, not '{sensitivity}'")
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
        data = few_trajectories(prepared, progress)
        judging, samples = judging_of(prepared, data) if sensitivity == "decoupled" else (BY_PREDICTION, data)
        if config.rotation is not Rotation.NONE:  # AUTO on a few seeds; ``quantize`` chooses anew, on all
            rotations = choose_rotations(prepared.float_graph, prepared.plan, data, config, progress)
            take_rotations(prepared.float_graph, prepared.plan.layers, rotations)
        aspects = list(judging.aspects.values())
        measured = sensitivities_on(prepared, samples, prepared.plan.quantized, settings, progress, aspects=aspects)
    parameters = sum(tensor.numel() for tensor in prepared.float_graph.state_dict().values())
    by_layer = {layer.name: settings(layer) for layer in prepared.plan.quantized}
    return choose(measured, by_layer, limit, parameters, judging, planes=prepared.config.products == "int8")


def _settings(layer: GraphLayer) -> list[BitPair]:
    """The bits that the plan gives, and the bits to raise them to if that is not the same."""
    given = layer.weight_bits, layer.activation_bits
    raised = max(layer.weight_bits, RAISED), max(layer.activation_bits, RAISED)
    return list(dict.fromkeys((given, raised)))


def choose(measured: Sequence[Sensitivity], settings: dict[str, list[BitPair]], budget: WeightBudget, parameters: int,
           judging: Judging = BY_PREDICTION, *, planes: bool = True) -> BitChoice:  # fmt: skip
    """The layers to raise, from what was measured; ``parameters`` are the model's, and ``planes`` says that products are of integers."""
    rated = {group: _Rated(measured, settings, aspect, judging.every, planes) for group, aspect in judging.aspects.items()}
    prediction = _Rated(measured, settings, PREDICTION, judging.every, planes)
    rest = max(2 * (parameters - sum(x.weights for x in measured)), 0)

    def raised_within(size: float) -> set[str]:
        chosen = least_error(prediction.options, size - rest) or [0] * len(measured)
        for group, by_its_own in rated.items():
            members = [i for i, x in enumerate(measured) if judging.groups[x.layer] is group]
            granted = sum(prediction.options[i][chosen[i]].size for i in members)
            for i, index in zip(members, least_error([by_its_own.options[i] for i in members], granted) or [], strict=True):
                chosen[i] = index
        return {x.layer for x, index in zip(measured, chosen, strict=True) if index}

    least, most = (rest + sum(pick(option.size for option in layer) for layer in prediction.options) for pick in (min, max))
    size = limit = budget.bytes_of(parameters)
    if budget.kind == "snr":  # the fewest bytes that reach it
        size = least + bisect_left(range(least, most), True, key=lambda size: prediction.snr(raised_within(size)) >= limit)
    raised = raised_within(size)
    bits = {x.layer: settings[x.layer][-1 if x.layer in raised else 0] for x in measured}
    own = {name: rated.get(group, prediction) for name, group in judging.groups.items()}
    result = BitChoice(
        keep={x.layer: RAISED for x in measured if x.layer in raised},
        layers=[
            LayerChoice(
                layer=name, weight_bits=chosen[0], activation_bits=chosen[1], raised=name in raised,
                error_share=own.get(name, prediction).share[name], group=judging.groups.get(name),
            )
            for name, chosen in bits.items()
        ],
        weights_bytes=rest + sum(_bytes(x, bits[x.layer], planes) for x in measured),
        float_bytes=FLOAT_BYTES * parameters,
        snr_db=prediction.snr(raised),
        snr_db_lowest=prediction.snr(set()),
        snr_db_highest=prediction.snr(set(bits)),
        notes=list(judging.notes),
    )  # fmt: skip
    for group in Group:
        members = [layer for layer in result.layers if layer.group == group]
        if members:
            result.groups.append(_of_group(group, members, judging, rated.get(group, prediction), raised))
    _check_met(result, budget, limit)
    return result


class _Rated:
    """Layers judged by one aspect: ``options`` for the solver, in their order, and by layer the ``share`` of the error before raising."""

    def __init__(self, measured: Sequence[Sensitivity], settings: dict[str, list[BitPair]], aspect: Aspect, every: int,
                 planes: bool) -> None:  # fmt: skip
        def noise(x: Sensitivity, bits: BitPair) -> torch.Tensor:
            return x.noise[bits][::every] if aspect is PREDICTION else x.aspects[aspect.name][bits]

        self.low = {x.layer: noise(x, settings[x.layer][0]) for x in measured}
        self.high = {x.layer: noise(x, settings[x.layer][-1]) for x in measured}
        total = torch.stack(list(self.low.values())).sum(dim=0).clamp(min=1e-30)
        self.share = {name: float((value / total).mean()) for name, value in self.low.items()}
        self.options = [[Setting(_bytes(x, b, planes), float((noise(x, b) / total).mean())) for b in settings[x.layer]] for x in measured]

    def snr(self, raised: set[str]) -> float:
        """Predicted SNR in dB, the median over the samples."""
        noise = torch.stack([self.high[name] if name in raised else self.low[name] for name in self.low]).sum(dim=0).clamp(min=1e-30)
        return float(median((-10 * noise.log10()).tolist()))


def _of_group(group: Group, members: Sequence[LayerChoice], judging: Judging, rated: _Rated, raised: set[str]) -> GroupChoice:
    return GroupChoice(
        group=group, judged_by=judging.aspect(group).name, layers=len(members), raised=sum(layer.raised for layer in members),
        error_share=sum(layer.error_share for layer in members), snr_db=rated.snr(raised), snr_db_lowest=rated.snr(set()),
        snr_db_highest=rated.snr(set(rated.low)),
    )  # fmt: skip


def _bytes(layer: Sensitivity, bits: BitPair, planes: bool) -> int:
    return layer_bytes(of_bits(bits[0]), layer.weights, layer.channels, planes=planes and bits[1] <= RAISED)


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
