"""The layer report: which kernel runs each convolution and matrix product of an engine, and in which precision.

It shows what the builder *chose*. For an engine built ahead of time nothing was executed, and ``statement`` says so wherever it is shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from .layer_dump import Kernel, LayerDump

SCHEMA_VERSION = 1
STATEMENTS = {
    "tensorrt-rtx": "chosen ahead of time by the compiler; not executed on this machine",
    "tensorrt": "chosen by the builder for this machine's GPU; not a timing",
    "openvino": "chosen by OpenVINO for this machine's CPU at the usual shapes; another CPU chooses again when it loads the engine",
}

ContractionOp = Literal["conv", "gemm"]
CONTRACTIONS: dict[str, ContractionOp] = {
    "Conv": "conv",
    "ConvTranspose": "conv",
    "ConvInteger": "conv",
    "MatMul": "gemm",
    "Gemm": "gemm",
    "Einsum": "gemm",
    "MatMulInteger": "gemm",
    "Attention": "gemm",
}
# A kernel whose type says that it multiplies matrices: `correlation` is RTX's word for a convolution.
_CONTRACTION_TYPE = re.compile(r"correlation|conv|gemm|matmul|matrix|mha|attention|fullyconnected", re.IGNORECASE)
# Fused kernels say so in their name only: `__myl_CastMulCastFc_…`, `_gemm_mha_v2_…`. "Conc" is a concatenation.
_CONTRACTION_NAME = re.compile(r"Fc(?=[A-Z_])|Gemm|Conv(?=[A-Z_])|_gemm|mha")
# Entries of the list that launch nothing: shape arithmetic on the host, and streams that wait for each other.
_BOOKKEEPING = ("shape_call", "signal", "wait")
# A fusion that casts before it multiplies may read integers and multiply floats.
_CAST_FIRST = re.compile(r"Cast.*(Fc|Gemm|Conv|_gemm|mha)")
_FLOATS = ("fp32", "fp16", "bf16", "fp8")


class Contraction(BaseModel):
    """A Conv, MatMul or Gemm of the graph, with the kernel that runs it (None: in no kernel) and that kernel's precision.

    ``reason`` says why it is not INT8; None where it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    node: str
    op: ContractionOp
    kernel: str | None
    kernel_type: str | None
    precision: str | None
    reason: str | None = None


class ReportedLayer(BaseModel):
    """A layer that was planned for quantization, with what became of it: ``precision`` is None when no kernel runs it.

    ``reason`` says why it is not INT8; None where it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    op: str
    macs: int
    nodes: tuple[str, ...]
    kernels: tuple[str, ...]
    precision: str | None
    reason: str | None = None


class LayerReport(BaseModel):
    """Everything known about one engine's kernels. ``compute_capability`` is like "8.9", None for a CPU; ``version`` the builder's."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = SCHEMA_VERSION
    backend: str
    version: str
    compute_capability: str | None
    statement: str
    weights_bytes: int
    kernels: tuple[Kernel, ...]
    contractions: tuple[Contraction, ...]
    layers: tuple[ReportedLayer, ...]

    def not_int8(self) -> list[ReportedLayer]:
        """Planned layers that a kernel runs in another precision than INT8."""
        return [layer for layer in self.layers if layer.precision not in (None, "int8")]

    def not_found(self) -> list[ReportedLayer]:
        """Planned layers that no kernel runs. Conservation: planned = found, so any entry is an error, the export's or ours."""
        return [layer for layer in self.layers if layer.precision is None]

    def int8_share(self, op: ContractionOp) -> float | None:
        """Share of the graph's convolutions or matrix products, those left in float included, that run as INT8; None when it has none."""
        precisions = [c.precision for c in self.contractions if c.op == op]
        return precisions.count("int8") / len(precisions) if precisions else None

    def by_precision(self, op: ContractionOp) -> dict[str, int]:
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
            "kernels": sum(count for _, _, count in kernel_rows(self)),
            "kernels_by_type": [{"type": kind, "datatype": datatype, "count": count} for kind, datatype, count in kernel_rows(self)],
            "conv_by_precision": self.by_precision("conv"),
            "gemm_by_precision": self.by_precision("gemm"),
            "gemm_kernels": len({c.kernel for c in self.contractions if c.op == "gemm" and c.kernel}),
            "int8_share_conv": self.int8_share("conv"),
            "int8_share_gemm": self.int8_share("gemm"),
            "planned_layers": len(self.layers),
            "planned_found": len(self.layers) - len(self.not_found()),
            "planned_int8": sum(layer.precision == "int8" for layer in self.layers),
            "not_int8": [layer.name for layer in self.not_int8()],
            "not_found": [layer.name for layer in self.not_found()],
            "reasons": {layer.name: layer.reason for layer in [*self.not_int8(), *self.not_found()]},
            "float_products": {c.node: c.reason for c in self.contractions if c.reason and not self._planned(c.node)},
        }

    def _planned(self, node: str) -> bool:
        return any(node in layer.nodes for layer in self.layers)

    def to_json(self) -> str:
        """Deterministic JSON text."""
        return self.model_dump_json(indent=1) + "\n"


def build_report(
    dump: LayerDump, *, backend: str, version: str, compute_capability: str | None, planned: Sequence[Mapping[str, Any]] = (),
    float_layers: Sequence[Mapping[str, Any]] = (), integer: bool = True,
) -> LayerReport:  # fmt: skip
    """Make the report of one engine from its kernels (its builder's log, or OpenVINO's runtime graph).

    ``planned`` are the bundle's ``details["layers"]``: each has "name", "op" and "macs" (per sample). A layer is found through the names of
    its ONNX nodes, "<layer>/…" (or "<layer>+<layer>/…" where the exporter merged layers); it is INT8 when all of its products are.
    ``float_layers`` are the bundle's layers that were left in float, each with "name" and "reason"; ``integer`` is False where INT8 kernels
    were turned off.
    """
    names = {layer["name"] for layer in planned}
    left = {layer["name"]: f"left in float: {layer['reason']}" for layer in float_layers}
    contractions = _contractions(dump, lambda node, kernel: _reason(node, kernel, names, left, integer=integer))
    return LayerReport(
        backend=backend,
        version=version,
        compute_capability=compute_capability,
        statement=STATEMENTS[backend],
        weights_bytes=dump.weights_bytes,
        kernels=dump.kernels,
        contractions=tuple(contractions),
        layers=tuple(_layers(planned, contractions)),
    )


def kernel_rows(report: LayerReport) -> list[tuple[str, str, int]]:
    """(kernel type, datatypes, count), the commonest first: rows for a table. What only orders the others is no kernel and left out."""
    counts = Counter((kernel.type, datatypes(kernel)) for kernel in report.kernels if kernel.type not in _BOOKKEEPING)
    return sorted(((kind, datatype, count) for (kind, datatype), count in counts.items()), key=lambda row: (-row[2], row[0], row[1]))


def layer_rows(report: LayerReport) -> list[tuple[str, str, str, str]]:
    """(planned layer, op, precision, kernels), those that are missing or not INT8 first: rows for a table."""
    ordered = [*report.not_found(), *report.not_int8(), *(layer for layer in report.layers if layer.precision == "int8")]
    return [(layer.name, layer.op, layer.precision or "not found", ", ".join(layer.kernels)) for layer in ordered]


def datatypes(kernel: Kernel) -> str:
    """The precision of a kernel that multiplies matrices, and "inputs -> outputs" of any other."""
    if _rank(kernel) < 2:
        return _precision(kernel)
    sides = ("+".join(sorted({tensor.dtype for tensor in side})) or "none" for side in (kernel.inputs or kernel.constants, kernel.outputs))
    return " -> ".join(sides)


Why = Callable[[str, Kernel | None], str]


def _contractions(dump: LayerDump, why: Why) -> list[Contraction]:
    by_node: dict[str, list[Kernel]] = {}
    for each in dump.kernels:
        for name in each.nodes:
            by_node.setdefault(name, []).append(each)
    found = []
    for node, operator in dump.operators.items():
        if operator not in CONTRACTIONS:
            continue
        # The scaling kernel behind a GEMM carries the GEMM's node in its metadata too: take the one that multiplies matrices.
        candidates = sorted(by_node.get(node, []), key=_rank)
        kernel = candidates[0] if candidates else None
        precision = _precision(kernel) if kernel else None
        found.append(
            Contraction(
                node=node,
                op=CONTRACTIONS[operator],
                kernel=kernel.name if kernel else None,
                kernel_type=kernel.type if kernel else None,
                precision=precision,
                reason=None if precision == "int8" else why(node, kernel),
            )
        )
    return found


def _reason(node: str, kernel: Kernel | None, planned: set[str], left: Mapping[str, str], *, integer: bool) -> str:
    """Why a product is not INT8, from what its kernel reads."""
    layers = node.partition("/")[0].split("+")
    if not planned.intersection(layers):
        return next((left[layer] for layer in layers if layer in left), "not planned for quantization")
    if kernel is None:
        return "no kernel carries its node"
    if not integer:
        return "INT8 kernels are turned off"
    operands = [tensor.dtype for tensor in (*kernel.inputs, *kernel.constants)]
    if "int4" in operands:
        return f"the kernel unpacks INT4 weights and multiplies in {_precision(kernel)}"
    if _rank(kernel) == 2:
        return f"it is fused into a kernel that says nothing of a product ({kernel.type})"
    if _CAST_FIRST.search(kernel.name):
        return "the fused kernel casts its operands before it multiplies them"
    sides = ", ".join(f"{name} {'+'.join(sorted({t.dtype for t in side})) or 'none'}" for name, side in
                      (("inputs", kernel.inputs), ("constants", kernel.constants)))  # fmt: skip
    return f"the kernel reads {sides}"


def _rank(kernel: Kernel) -> int:
    """0: multiplies matrices by its type, or as its engine says; 1: by its name (a fusion); 2: nothing says so."""
    if kernel.precision or _CONTRACTION_TYPE.search(kernel.type):
        return 0
    return 1 if _CONTRACTION_NAME.search(kernel.name) else 2


def _precision(kernel: Kernel) -> str:
    """The precision of a kernel's product: INT8 only when both operands are integers, and stay so up to the product."""
    inputs = [tensor.dtype for tensor in kernel.inputs]
    operands = inputs + [tensor.dtype for tensor in kernel.constants]
    if kernel.precision:
        return kernel.precision
    rank = _rank(kernel)
    multiplies_as_read = rank == 0 or (rank == 1 and not _CAST_FIRST.search(kernel.name))
    if multiplies_as_read and "int8" in inputs and sum(dtype in ("int8", "int4") for dtype in operands) >= 2:
        return "int8"
    everything = operands + [tensor.dtype for tensor in kernel.outputs]
    return next((dtype for dtype in everything if dtype in _FLOATS), "unknown")


def _layers(planned: Sequence[Mapping[str, Any]], contractions: Sequence[Contraction]) -> list[ReportedLayer]:
    by_layer: dict[str, list[Contraction]] = {}
    for contraction in contractions:
        for name in contraction.node.partition("/")[0].split("+"):
            by_layer.setdefault(name, []).append(contraction)
    layers = []
    for layer in planned:
        found = by_layer.get(layer["name"], [])
        precisions = [contraction.precision for contraction in found]
        layers.append(
            ReportedLayer(
                name=layer["name"],
                op=layer["op"],
                macs=layer["macs"],
                nodes=tuple(contraction.node for contraction in found),
                kernels=tuple(dict.fromkeys(contraction.kernel for contraction in found if contraction.kernel)),
                precision=None if not found or None in precisions else next((p for p in precisions if p != "int8"), "int8"),
                reason=next((c.reason for c in found if c.reason), None) if found else "the graph has no product of that name",
            )
        )
    return layers
