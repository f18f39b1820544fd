"""Which products are quantized, with how many bits, and which stay in float for what reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod
from typing import Any

from torch.fx import GraphModule, Node

from ...errors import UsageError, did_you_mean
from ...formats import FP4, FP8, INT8, Activations, Kind, NumberFormat, of_bits
from ...formats.codebook import Codebook
from ...formats.fp4 import FP4_RANKS
from ..config import FIRST, LAST, QuantizeConfig
from ..quantizers import QUANTIZERS, BlockQuantizer, StaticQuantizer, TableQuantizer, TokenQuantizer
from ..weights import Fp4Linear
from ..weights.base import MOST_INPUTS
from ..weights.blocked import block_length
from .dataflow import unmixed
from .low_rank import branch_off, branched
from .moves import MOVES
from .products import GraphLayer, find_layers
from .shapes import static_shape
from .skip_halves import name_matches, whole_name

_BLURRED = "reads the model's input, which 8 bits would blur by more than the noise of the last step"
_FUSED = "both operands are activations: beside FP8 and FP4 attention stays one float kernel"
_KEEP = QuantizeConfig().keep
_KIND_OF_TABLES = {
    Activations.AUTO: TableQuantizer.kind,  # until they are chosen
    Activations.PER_TIMESTEP: TableQuantizer.kind,
    Activations.PER_TOKEN: TableQuantizer.kind,
    Activations.STATIC: StaticQuantizer.kind,
}


@dataclass(frozen=True)
class Reading:
    """How an operand of a product is quantized: by which ``kind`` of ``quantizers.QUANTIZERS``, to what."""

    kind: str
    fmt: NumberFormat
    symmetric: bool


@dataclass
class Plan:
    """Every product of the model: quantized, or left in float with the reason. ``quantizer`` is the kind that activations have.

    ``symmetric_tokens``: a scale for each token comes without zero-points (docs/decisions/activation-scales.md).
    """

    layers: list[GraphLayer]
    quantizer: str = TableQuantizer.kind
    zero_points: bool = True
    softmax_format: NumberFormat = INT8
    symmetric_tokens: bool = False

    @property
    def quantized(self) -> list[GraphLayer]:
        """Layers to quantize."""
        return [layer for layer in self.layers if not layer.float_reason]

    @property
    def left_float(self) -> list[GraphLayer]:
        """Layers that stay in float."""
        return [layer for layer in self.layers if layer.float_reason]

    @property
    def float_fraction(self) -> float:
        """Share of the multiply-accumulates that stays in float, of those that do not do so by design: as products of activations may."""
        counted = [layer for layer in self.layers if not layer.branch and (layer.op != "matmul" or layer.activation_format.integer)]
        total = sum(layer.macs for layer in counted)
        return sum(layer.macs for layer in counted if layer.float_reason) / total if total else 0.0

    def reading(self, layer: GraphLayer, operand: Node, kind: str | None = None) -> Reading:
        """How ``layer`` reads one of its operands; with another ``kind`` of quantizer, if one is given."""
        # Only on the left: the zero-point of probabilities is then corrected by column sums of the right operand's codes.
        if layer.probabilities and operand is layer.node.args[0]:
            return Reading("probabilities", self.softmax_format, symmetric=False)
        kind = kind or layer.quantizer or self.quantizer
        possible = layer.op != "matmul" and layer.activation_format.integer and QUANTIZERS[kind].zero_points
        zero_points = self.zero_points and possible and not (self.symmetric_tokens and kind == TokenQuantizer.kind)
        return Reading(kind, layer.activation_format, symmetric=not zero_points)


def plan_with_branches(graph_module: GraphModule, config: QuantizeConfig) -> Plan:
    """The plan of a graph that gets the low-rank branches which ``config`` asks for, in place. Raises as ``make_plan``."""
    plan = make_plan(graph_module, config)
    if not config.low_rank:
        return plan
    layers = branched(plan.layers, config.low_rank, _unmoved(_output(graph_module)))
    if not layers:
        raise UsageError(
            f"low_rank is {config.low_rank}, and no linear layer of up to 4 bits is smaller with such a branch than in 8 bits",
            "give a lower rank, quantize with a preset such as nvfp4 or w4a4, or leave it out",
        )
    branch_off(graph_module, layers, config.low_rank)
    return make_plan(graph_module, config)


def make_plan(graph_module: GraphModule, config: QuantizeConfig) -> Plan:
    """Find every product and decide its bits.

    Raises UsageError when nothing can be quantized, a ``keep`` pattern matches nothing, or too much would stay in float.
    """
    layers = list(find_layers(graph_module))
    if not layers:
        raise UsageError("the model has no convolution, linear layer or matrix product to quantize")
    inputs, output = graph_module.graph.find_nodes(op="placeholder"), _output(graph_module)
    unmatched = []
    for layer in layers:
        layer.node.meta["layer"] = layer.name
        _assign(layer, config)
    sample = unmixed(graph_module, inputs[0], {layer.node for layer in layers})
    for pattern, value in config.keep.items():
        hits = [x for x in layers if _matches(pattern, x, sample, output)]
        if not hits and _KEEP.get(pattern) != value:  # the defaults say what happens to such a layer where there is one
            unmatched.append(pattern)
        for layer in hits:
            _keep(layer, pattern, value, config)
    if unmatched:
        names = ", ".join(layer.name for layer in layers[:8])
        meaning = f"; {FIRST} and {LAST} are those that read the sample as it is, and whose output is the model's"
        roles = meaning if {FIRST, LAST} & set(unmatched) else ""
        near = did_you_mean(unmatched, [layer.name for layer in layers])
        raise UsageError(f"no layer matches {', '.join(map(repr, unmatched))}", f"{near}layers are named like: {names}, …{roles}")
    _check_widths(layers, config)
    plan = Plan(
        layers,
        _KIND_OF_TABLES[config.activations],
        config.zero_points,
        of_bits(config.softmax_bits),
        symmetric_tokens=config.activations is Activations.AUTO,
    )
    if (problem := too_much_float(plan, config)) is not None:
        raise problem
    return plan


def too_much_float(plan: Plan, config: QuantizeConfig) -> UsageError | None:
    """The error where more stays in float than the configuration allows, with what allows it; else None."""
    if plan.float_fraction <= config.max_float_share:
        return None
    worst = sorted(plan.left_float, key=lambda x: -x.macs)[:5]
    enough = min(1.0, math.ceil(plan.float_fraction * 100) / 100)
    listing = "; ".join(f"{x.name} ({x.float_reason})" for x in worst)
    return UsageError(
        f"{plan.float_fraction:.1%} of the multiply-accumulates would stay in float, more than {config.max_float_share:.1%}: {listing}",
        "quantize those layers; or allow it, which is harmless in a very small model, where the first layer weighs more: "
        f"echo '{{\"max_float_share\": {enough:g}}}' > options.json, then --config options.json",
    )


def _assign(layer: GraphLayer, config: QuantizeConfig) -> None:
    """Give a layer what the configuration says of all layers of its kind."""
    layer.weight_format, layer.activation_format = config.weight_format, config.activation_format
    layer.widths = config.matryoshka if layer.op != "matmul" else ()
    if layer.weight_only:
        _weight_only(layer, config)
    elif layer.op == "matmul" and not layer.activation_format.integer:
        layer.float_reason = layer.float_reason or _FUSED
    elif layer.activation_format is FP4:
        if not _in_blocks(layer):
            as_fp8(layer, config)
    elif layer.op == "linear" and config.activations is Activations.PER_TOKEN:
        layer.quantizer = TokenQuantizer.kind
    if config.codebook is not None and layer.op != "matmul" and not layer.float_reason:
        _codewords(layer, config.codebook.made())


def _check_widths(layers: list[GraphLayer], config: QuantizeConfig) -> None:
    """Raise UsageError where weights of several widths are asked for, and no layer has any."""
    if config.matryoshka and not any(layer.widths for layer in layers if not layer.float_reason):
        raise UsageError("matryoshka has no layer to slice: keep says the bits of every one", "leave out keep, or matryoshka")


def _matches(pattern: str, layer: GraphLayer, sample: set[Node], output: Any) -> bool:
    if pattern == FIRST:
        return any(x in sample for x in layer.node.all_input_nodes)
    if pattern == LAST:
        last = _unmoved(output)
        halves = last.all_input_nodes if whole_name(layer.name) != layer.name else []  # whose sum the output is
        return layer.node is last or layer.node in halves
    return name_matches(layer.name, pattern)


def _output(graph_module: GraphModule) -> Any:
    """What the graph gives, the first of several."""
    output = graph_module.graph.output_node().args[0]
    return output[0] if isinstance(output, tuple | list) else output


def _unmoved(value: Any) -> Any:
    """The node whose elements ``value`` has in another arrangement: a transformer cuts its sample into patches and puts them together."""
    while isinstance(value, Node) and value.target in MOVES:
        value = value.args[0]
    return value


def _keep(layer: GraphLayer, pattern: str, value: int | str, config: QuantizeConfig) -> None:
    if value == "float":
        blurred = pattern == FIRST and not layer.weight_only
        reason = _BLURRED if blurred else f"keep {pattern}=float"
        layer.kept = layer.kept or not layer.float_reason
        layer.float_reason = layer.float_reason or reason
    else:
        if layer.weight_format.kind is Kind.CODEBOOK:
            layer.form, layer.options = None, {}
        wanted = of_bits(int(value), config.products)
        if wanted is FP4 and layer.activation_format is not FP4:
            raise UsageError(
                f"keep {pattern}={value}: {layer.name} cannot be multiplied in {FP4.name}",
                f"linear layers can that read a tensor of 2 or 3 dimensions with a multiple of {FP4.block} channels: leave it at 8",
            )
        layer.weight_format, layer.widths = wanted, ()
        if layer.activation_format is FP4 and wanted is not FP4:
            as_fp8(layer, config)
        if layer.activation_format.integer:
            layer.activation_format = layer.weight_format
        if layer.kept:  # by an earlier pattern, and not because it has no integer form
            layer.float_reason, layer.kept = None, False


def _in_blocks(layer: GraphLayer) -> bool:
    """Let a linear layer multiply FP4 codes in blocks, if it can: TensorRT takes those of a matrix, or of a batch of them."""
    operand = layer.node.args[0]
    assert isinstance(operand, Node)
    if layer.op != "linear" or len(operand.meta["val"].shape) not in FP4_RANKS or static_shape(operand.meta["val"])[-1] % FP4.block:
        return False
    layer.form, layer.quantizer = Fp4Linear.kind, BlockQuantizer.kind
    return True


def as_fp8(layer: GraphLayer, config: QuantizeConfig) -> None:
    """Let a layer multiply FP8 codes where others have FP4."""
    layer.form, layer.weight_format, layer.activation_format = None, FP8, FP8
    layer.quantizer = TokenQuantizer.kind if layer.op == "linear" and config.activations is Activations.PER_TOKEN else None


def _weight_only(layer: GraphLayer, config: QuantizeConfig) -> None:
    """What happens to a product whose activations stay float."""
    if layer.op == "matmul":
        layer.float_reason = layer.float_reason or "both operands are activations, which stay float"
    if layer.op == "linear" and not layer.float_reason:
        channels = static_shape(layer.node.args[1].meta["val"])[1]  # type: ignore[union-attr]
        layer.options["block"] = block_length(config.weight_block, channels)


def _codewords(layer: GraphLayer, codebook: Codebook) -> None:
    """Make a layer's weight of codewords where that saves bytes and all its inputs can be seen at once; else it has 4 bits."""
    outputs, *inputs = static_shape(layer.node.args[1].meta["val"])  # type: ignore[union-attr]
    grouped = layer.op == "conv2d" and layer.node.args[6:7] not in ((), (1,))  # each group has few inputs
    if grouped or prod(inputs) > MOST_INPUTS or not codebook.pays(outputs, prod(inputs)):
        layer.weight_format = of_bits(4)
        return
    layer.weight_format, layer.form = codebook.format, f"codebook-{layer.op}"
    layer.options |= {"length": codebook.length, "books": codebook.books}
