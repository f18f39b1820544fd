"""The layer report: which kernel runs each convolution and matrix product of an engine, in which number format, and whether as planned.

It shows what the builder *chose*. For an engine built ahead of time nothing was executed, and ``statement`` says so wherever it is shown.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ...artifacts.details import FloatLayer, LoweredLayer
from ...artifacts.records import Record
from ..descriptors.descriptor import FLOATS, Op
from ..descriptors.registry import builders
from .kernels import NOTHING, AttentionPlan, Kernel, LayerDump, casts_first, datatypes, product_format, rank

SCHEMA_VERSION = 1
CONTRACTIONS: dict[str, Op] = {
    "Conv": "conv",
    "ConvTranspose": "conv",
    "ConvInteger": "conv",
    "MatMul": "gemm",
    "Gemm": "gemm",
    "Einsum": "gemm",
    "MatMulInteger": "gemm",
    "Attention": "gemm",
}
_OPS: dict[Op, str] = {"conv": "convolutions", "gemm": "matrix products"}
BOOKKEEPING = ("shape_call", "signal", "wait")
"""Types of entries that launch nothing: shape arithmetic on the host, and streams that wait for each other."""


class Contraction(Record):
    """A Conv, MatMul or Gemm of the graph, with the kernel that runs it (None: in no kernel) and that kernel's precision.

    ``planned_format`` is the number format that it is to run in, a float's where it was not quantized (None: a report from before it was
    kept, of INT8 plans). ``reason`` says why it runs in another, or why it was left in float; None where it is quantized as planned.
    """

    node: str
    op: Op
    kernel: str | None
    kernel_type: str | None
    precision: str | None
    reason: str | None = None
    planned_format: str | None = None


class ReportedLayer(Record):
    """A layer whose products were planned in ``planned_format``, with what happened to it: ``precision`` is None when no kernel runs it.

    ``reason`` says why it is not as planned; None where it is.
    """

    name: str
    op: str
    macs: int
    nodes: tuple[str, ...]
    kernels: tuple[str, ...]
    precision: str | None
    reason: str | None = None
    planned_format: str = "int8"


class ReportedAttention(Record):
    """An attention: ``tokens`` query ``keys``, in ``heads`` of ``head_size`` channels (None: known at run time only).

    ``planned`` says that it was to be one kernel, ``fused`` that it is, and ``precision`` what that computes in; ``reason`` says why it is
    not. ``kernels`` compute q·kᵀ and P·v, ``macs`` are those of both for a sample.
    """

    name: str
    nodes: tuple[str, str]
    tokens: int | None
    keys: int | None
    heads: int | None
    head_size: int | None
    kernels: tuple[str, ...]
    macs: int
    planned: bool
    fused: bool
    precision: str | None = None
    reason: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of q·kᵀ and P·v."""
        return tuple(node.partition("/")[0] for node in self.nodes)


class LayerReport(Record):
    """Everything known about one engine's kernels. ``compute_capability`` is like "8.9", None for a CPU; ``version`` the builder's.

    ``activation_bytes`` is what a run needs for activations at the profile's largest shapes, None where the builder does not say.
    """

    schema_version: int = SCHEMA_VERSION
    backend: str
    version: str
    compute_capability: str | None
    statement: str
    weights_bytes: int
    activation_bytes: int | None = None
    kernels: tuple[Kernel, ...]
    contractions: tuple[Contraction, ...]
    layers: tuple[ReportedLayer, ...]
    # Of engines that have a fused kernel for them.
    attentions: tuple[ReportedAttention, ...] = ()

    def not_fused(self) -> list[ReportedAttention]:
        """Attentions that are several kernels and a written-out score matrix."""
        return [attention for attention in self.attentions if not attention.fused]

    def not_as_planned(self) -> list[ReportedLayer]:
        """Planned layers that a kernel runs in another number format than the planned one."""
        return [layer for layer in self.layers if layer.precision not in (None, layer.planned_format)]

    def as_planned(self) -> list[ReportedLayer]:
        """Planned layers that run in the planned number format."""
        return [layer for layer in self.layers if layer.precision == layer.planned_format]

    def not_found(self) -> list[ReportedLayer]:
        """Planned layers that no kernel runs. Conservation: planned = found, so any entry is an error, the export's or ours."""
        return [layer for layer in self.layers if layer.precision is None]

    def int8_share(self, op: Op) -> float | None:
        """Share of the graph's convolutions or matrix products, those left in float included, that run as INT8; None when it has none."""
        precisions = [c.precision for c in self.contractions if c.op == op]
        return precisions.count("int8") / len(precisions) if precisions else None

    def by_precision(self, op: Op) -> dict[str, int]:
        """Number of convolutions or matrix products of the graph by the precision in which they run."""
        return dict(Counter(c.precision or "not found" for c in self.contractions if c.op == op))

    def summary(self) -> dict[str, Any]:
        """The report in a few numbers, as plain JSON."""
        return {
            "statement": self.statement,
            "backend": self.backend,
            "version": self.version,
            "compute_capability": self.compute_capability,
            "weights_bytes": self.weights_bytes,
            "activation_bytes": self.activation_bytes,
            "kernels": sum(count for _, _, count in kernel_rows(self)),
            "kernels_by_type": [{"type": kind, "datatype": datatype, "count": count} for kind, datatype, count in kernel_rows(self)],
            "conv_by_precision": self.by_precision("conv"),
            "gemm_by_precision": self.by_precision("gemm"),
            "gemm_kernels": len({c.kernel for c in self.contractions if c.op == "gemm" and c.kernel}),
            "int8_share_conv": self.int8_share("conv"),
            "int8_share_gemm": self.int8_share("gemm"),
            "planned_layers": len(self.layers),
            "planned_found": len(self.layers) - len(self.not_found()),
            "planned_formats": dict(Counter(layer.planned_format for layer in self.layers)),
            "as_planned": len(self.as_planned()),
            "not_as_planned": {layer.name: layer.planned_format for layer in [*self.not_as_planned(), *self.not_found()]},
            "planned_int8": sum(layer.precision == "int8" for layer in self.layers),
            "not_int8": [layer.name for layer in self.layers if layer.precision not in (None, "int8")],
            "not_found": [layer.name for layer in self.not_found()],
            "reasons": {layer.name: layer.reason for layer in [*self.not_as_planned(), *self.not_found()]},
            "attentions": len(self.attentions),
            "attentions_fused": len(self.attentions) - len(self.not_fused()),
            "attentions_split": {attention.name: attention.reason for attention in self.not_fused()},
            "float_products": {c.node: c.reason for c in self.contractions if c.reason and not self.planned(c.node)},
        }

    def planned(self, node: str) -> bool:
        """Whether a product is one of the planned layers'."""
        return any(node in layer.nodes for layer in self.layers)

    def to_json(self) -> str:
        """Deterministic JSON text."""
        return self.model_dump_json(indent=1) + "\n"


def op_of(layer_op: str) -> Op:
    """A layer's operation as an engine has it: its own ("conv2d", "linear", "matmul") is a convolution or a matrix product."""
    return "conv" if layer_op.startswith("conv") else "gemm"


def planned_format(layer: LoweredLayer, dtype: str = "fp32") -> str:
    """The number format that a layer of a bundle is planned to multiply in.

    Its own ``format`` where it has one; the type of the graph's floats where its activations are taken in float (it names its ``input``);
    else INT8, which codes of up to 8 bits run in.
    """
    return layer.format or (dtype if layer.input is not None else "int8")


def build_report(
    dump: LayerDump, *, backend: str, version: str, compute_capability: str | None, planned: Sequence[LoweredLayer] = (),
    float_layers: Sequence[FloatLayer] = (), integer: bool = True, dtype: str = "fp32", attentions: Sequence[AttentionPlan] = (),
) -> LayerReport:  # fmt: skip
    """Make the report of one engine from its kernels (its builder's log, or OpenVINO's runtime graph).

    ``planned`` are the bundle's quantized layers. A layer is found through the names of its ONNX nodes, "<layer>/…" (or "<layer>+<layer>/…"
    where the exporter merged layers); it is as planned when all of its products are. ``float_layers`` are the bundle's layers that were
    left in float, ``dtype`` is the type of its floats; ``integer`` is False where INT8 kernels were turned off. The products of
    ``attentions`` that are planned as one kernel are floats there, whatever the bundle has.
    """
    macs = {layer.name: layer.macs for layer in (*planned, *float_layers)}
    reported = [_attention(plan, dump.kernels, macs) for plan in attentions]
    fused = {layer for plan in attentions if plan.fused for layer in (plan.scores, plan.values)}
    planned = [layer for layer in planned if layer.name not in fused]
    formats = {layer.name: planned_format(layer, dtype) for layer in planned}
    left = {name: "its weights alone are quantized" for name, planned_one in formats.items() if planned_one in FLOATS}
    left |= {layer.name: f"left in float: {layer.reason}" for layer in float_layers}
    in_one = {node for attention in reported if attention.fused for node in attention.nodes}
    apart = {
        node: attention.reason or "" for attention in reported if attention.planned and not attention.fused for node in attention.nodes
    }
    contractions = _contractions(dump, formats, dtype, functools.partial(_reason, left=left, apart=apart, integer=integer), in_one)
    return LayerReport(
        backend=backend,
        version=version,
        compute_capability=compute_capability,
        statement=builders()[backend].building.statement,
        weights_bytes=dump.weights_bytes,
        activation_bytes=dump.activation_bytes,
        kernels=dump.kernels,
        contractions=tuple(contractions),
        layers=tuple(_layers([layer for layer in planned if formats[layer.name] not in FLOATS], formats, contractions)),
        attentions=tuple(reported),
    )


def _attention(plan: AttentionPlan, kernels: Sequence[Kernel], macs: Mapping[str, int]) -> ReportedAttention:
    """What became of an attention: one kernel where one that multiplies carries both of its products."""
    multiply = [kernel for kernel in kernels if rank(kernel) != NOTHING and set(plan.nodes) & set(kernel.nodes)]
    whole = [kernel for kernel in multiply if set(plan.nodes) <= set(kernel.nodes)]
    return ReportedAttention(
        name=plan.scores, **plan.model_dump(include={"nodes", "tokens", "keys", "heads", "head_size"}), planned=plan.fused,
        kernels=tuple(kernel.name for kernel in whole or multiply), macs=macs.get(plan.scores, 0) + macs.get(plan.values, 0),
        fused=bool(whole), precision=product_format(whole[0]) if whole else None,
        reason=None if whole else plan.reason or "the builder took it apart, though it meets the conditions that are known",
    )  # fmt: skip


def undocumented(reports: Sequence[LayerReport], instructions: Sequence[str] | None = None) -> list[str]:
    """A sentence on what is planned and the engine's vendor does not document for a device; ``instructions`` are a CPU's, where known."""
    found: dict[str, list[str]] = {}
    for report in reports:
        engine, device = builders()[report.backend], report.compute_capability
        asked = dict.fromkeys((c.planned_format or "int8", c.op) for c in report.contractions if report.planned(c.node))
        what = [f"{name.upper()} {_OPS[op]}" for name, op in asked if not engine.documents(name, op, device, instructions)]
        if what:
            sentence = f"{engine.title} does not document that it computes {' and '.join(what)} of quantized activations on"
            found.setdefault(sentence, []).append(f"compute capability {device}" if device else "such a CPU")
    alone = _weights_alone(reports)
    return [f"{sentence} {' and '.join(devices)}{alone}: look at what it chose, and time it" for sentence, devices in found.items()]


def _weights_alone(reports: Sequence[LayerReport]) -> str:
    """The formats that are documented for weights, the products being floats."""
    formats = dict.fromkeys(name.upper() for report in reports for name in builders()[report.backend].weight_formats)
    return f" (it documents {' and '.join(formats)} for weights alone)" if formats else ""


def kernel_rows(report: LayerReport) -> list[tuple[str, str, int]]:
    """(kernel type, datatypes, count), the commonest first: rows for a table. What only orders the others is not a kernel and left out."""
    counts = Counter((kernel.type, datatypes(kernel)) for kernel in report.kernels if kernel.type not in BOOKKEEPING)
    return sorted(((kind, datatype, count) for (kind, datatype), count in counts.items()), key=lambda row: (-row[2], row[0], row[1]))


def formats_in_words(planned_formats: Iterable[str]) -> str:
    """Number formats that layers were planned in, for the sentence "planned layers in …"."""
    return " and ".join(name.upper() for name in planned_formats) or "no format"


Why = Callable[[str, str | None, Kernel | None], str]


def _contractions(dump: LayerDump, formats: Mapping[str, str], dtype: str, why: Why, in_one: Collection[str]) -> list[Contraction]:
    """``in_one`` are products of fused attentions, which are as planned."""
    by_node: dict[str, list[Kernel]] = {}
    for each in dump.kernels:
        for name in each.nodes:
            by_node.setdefault(name, []).append(each)
    found = []
    for node, operator in dump.operators.items():
        if operator not in CONTRACTIONS:
            continue
        # The scaling kernel behind a GEMM carries the GEMM's node in its metadata too: take the one that multiplies matrices.
        candidates = sorted(by_node.get(node, []), key=rank)
        kernel = candidates[0] if candidates else None
        precision = product_format(kernel) if kernel else None
        planned = next((formats[layer] for layer in _layer_names(node) if layer in formats), dtype)
        found.append(
            Contraction(
                node=node,
                op=CONTRACTIONS[operator],
                kernel=kernel.name if kernel else None,
                kernel_type=kernel.type if kernel else None,
                precision=precision,
                reason=None
                if node in in_one or (precision == planned and planned not in FLOATS)
                else why(node, None if planned in FLOATS else planned, kernel),
                planned_format=planned,
            )
        )
    return found


def _reason(
    node: str, planned: str | None, kernel: Kernel | None, left: Mapping[str, str], apart: Mapping[str, str], *, integer: bool
) -> str:
    """Why a product does not run in the planned format, from what its kernel reads; or why none was planned (None)."""
    if node in apart:
        return f"its attention was planned as one kernel: {apart[node]}"
    if planned is None:
        return next((left[layer] for layer in _layer_names(node) if layer in left), "not planned for quantization")
    if kernel is None:
        return "no kernel carries its node"
    if planned == "int8" and not integer:
        return "INT8 kernels are turned off"
    operands = [tensor.dtype for tensor in (*kernel.inputs, *kernel.constants)]
    if "int4" in operands:
        return f"the kernel unpacks INT4 weights and multiplies in {product_format(kernel)}"
    if rank(kernel) == NOTHING:
        return f"it is fused into a kernel that says nothing of a product ({kernel.type})"
    if casts_first(kernel):
        return "the fused kernel casts its operands before it multiplies them"
    sides = ", ".join(f"{name} {'+'.join(sorted({t.dtype for t in side})) or 'none'}" for name, side in
                      (("inputs", kernel.inputs), ("constants", kernel.constants)))  # fmt: skip
    return f"the kernel reads {sides}"


def _layer_names(node: str) -> list[str]:
    """The layers whose product a node is: of several, where the exporter merged them."""
    return node.partition("/")[0].split("+")


def _layers(planned: Sequence[LoweredLayer], formats: Mapping[str, str], contractions: Sequence[Contraction]) -> list[ReportedLayer]:
    by_layer: dict[str, list[Contraction]] = {}
    for contraction in contractions:
        for name in _layer_names(contraction.node):
            by_layer.setdefault(name, []).append(contraction)
    layers = []
    for layer in planned:
        found = by_layer.get(layer.name, [])
        precisions, planned_format = [contraction.precision for contraction in found], formats[layer.name]
        layers.append(
            ReportedLayer(
                name=layer.name,
                op=layer.op,
                macs=layer.macs,
                nodes=tuple(contraction.node for contraction in found),
                kernels=tuple(dict.fromkeys(contraction.kernel for contraction in found if contraction.kernel)),
                precision=None if not found or None in precisions else next((p for p in precisions if p != planned_format), planned_format),
                reason=next((c.reason for c in found if c.reason), None) if found else "the graph has no product of that name",
                planned_format=planned_format,
            )
        )
    return layers
