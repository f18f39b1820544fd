"""A bundle's graph as three: the head up to the end of the first block, the body that is skipped, and the tail that makes the output.

Each is written as a bundle of its own into a folder that lasts as long as its runner, so any engine that runs bundles opens it as it
opens the whole. Weights lie in the part that reads them. What is computed from timestep, conditions and tables without a product is
computed in each part that reads it. So are codes of what the head hands over: engines fuse them with the product that reads them.
The head has all inputs of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as passes

from ...artifacts import Artifact, create_artifact
from ...artifacts.details import BundleDetails
from ...artifacts.layer_bits import fraction_of_work
from ...artifacts.reading import read_ir
from ...errors import UsageError
from ...exporters.bundle import write_model
from ..running.runner import MODEL_FILE
from .blocks import layer_name
from .cut import find_cut
from .flow import Flow

_CODES = ("QuantizeLinear", "DequantizeLinear")
_HANDED_OVER = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


@dataclass(frozen=True)
class Part:
    """A part as a bundle, and the names of its graph's inputs and outputs."""

    bundle: Artifact[BundleDetails]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Parts:
    """The three parts. ``entry``, ``first`` and ``last`` name the values of the cut; ``residual``, ``where`` and ``kept`` are ``Cut``'s.

    ``skipped_work``: the body's share of the multiply-accumulates in products of the manifest; None where it lists none (a float model).
    """

    head: Part
    body: Part
    tail: Part
    entry: str
    first: str
    last: str
    residual: bool
    where: str
    kept: str | None
    skipped_work: float | None


def write_parts(bundle: Artifact[BundleDetails], folder: Path) -> Parts:
    """Cut a bundle's graph and write its parts below ``folder``. Raises UsageError for a network that cannot be cut."""
    model = read_ir(bundle.file(MODEL_FILE), listed=bundle.manifest.files)
    passes.ShapeInferencePass()(model)  # engines want to know the shape of what they are handed
    flow = Flow(model.graph)
    cut = find_cut(flow)
    behind = flow.downstream(values={cut.last})
    into_tail = _needed(flow, model.graph.outputs, {cut.last}, lambda node: node not in behind)
    handed = [cut.entry, cut.first, *(value for value in into_tail if value is not cut.last)]
    head = frozenset(flow.upstream(handed))
    into_body = _needed(flow, [cut.last], (), head.__contains__)
    outputs = {value: None for value in [*handed, *into_body] if value.producer() is not None}
    body = flow.upstream([cut.last], {value for value in into_body if value.producer() is not None})

    def part(name: str, inputs: Iterable[ir.Value], given: Iterable[ir.Value]) -> Part:
        return _write(bundle, model, folder / name, list(inputs), list(given))

    names = {layer_name(node) for node in body if flow.is_product(node)}
    details = bundle.details
    products = [*details.layers, *details.float_layers]
    return Parts(
        head=part("head", model.graph.inputs, outputs),
        body=part("body", into_body, [cut.last]),
        tail=part("tail", into_tail, model.graph.outputs),
        entry=str(cut.entry.name),
        first=str(cut.first.name),
        last=str(cut.last.name),
        residual=cut.residual,
        where=cut.where,
        kept=cut.kept,
        skipped_work=fraction_of_work(products, lambda layer: layer.name in names) if products else None,
    )


def _needed(flow: Flow, outputs: Iterable[ir.Value], stop: Collection[ir.Value], made_before: Callable[[ir.Node], bool]) -> list[ir.Value]:
    """The inputs of a part that gives ``outputs``: of the graph, ``stop``, and values of nodes that were ``made_before``."""
    found: dict[ir.Value, None] = {}
    left, seen = list(outputs), set(outputs)
    while left:
        value = left.pop()
        node = value.producer()
        again = node is None or node in flow.repeatable or node.op_type in _CODES
        if value in stop or value in flow.inputs or (node is not None and not again and made_before(node)):
            found[value] = None
        elif node is not None:
            new = [read for read in node.inputs if read is not None and read not in seen]
            seen.update(new)
            left += new
    order = {value: place for place, value in enumerate(flow.graph.inputs)}
    return sorted(found, key=lambda value: (order.get(value, len(order)), flow.made(value)))


def _write(bundle: Artifact[BundleDetails], model: ir.Model, folder: Path, inputs: list[ir.Value], outputs: list[ir.Value]) -> Part:
    for value in [*inputs, *outputs]:
        if value.dtype not in _HANDED_OVER:
            raise UsageError(
                f"the network cannot be cut behind its first block: {value.name} would be handed from part to part, and is a {value.dtype}",
                "export it with --dtype fp32",
            )
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    # What is alike in all bundles of the network stays as it was: an engine decides by the layers how it runs them, of each part alike.
    manifest = bundle.manifest.model_copy(update={"files": {}}, deep=True)
    with create_artifact(folder, manifest) as made:
        write_model(ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values())), made / MODEL_FILE)
    return Part(Artifact(folder, manifest), tuple(str(value.name) for value in inputs), tuple(str(value.name) for value in outputs))
