"""The blocks of a bundle's graph, by the names of its products: these are the paths of the modules that they were."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from .flow import Flow

# A UNet's blocks are two lists deep (down_blocks.0.resnets.0), the others' one (transformer_blocks.0).
_LEVELS = re.compile(r"(?:^|.*\.)(?:down_blocks|mid_block|up_blocks)\.")
_IN_LEVEL = re.compile(r"(?:^|.*\.)(?P<side>down_blocks|up_blocks)\.(?P<level>\d+)\.(?!downsamplers|upsamplers)\w+\.(?P<index>\d+)\.")
_BLOCK = re.compile(r"(.+?)\.(\d+)\.")
_FEWEST = 2
"""Products of a block; what has one is an entry of a list of layers."""


@dataclass(frozen=True)
class Candidate:
    """A block that may be the first, and what would be skipped: products [n] that depend on the sample.

    ``kept``: what follows the body is not the last layers alone but a block too (of a UNet), and takes the body's output as it is.
    """

    name: str
    first: frozenset[ir.Node]
    skipped: frozenset[ir.Node]
    kept: str | None = None


def candidates(flow: Flow) -> list[Candidate]:
    """The first block of each of a graph's lists of blocks, in the order of the graph; of a UNet its outermost level. May be empty."""
    products = [node for node in flow.nodes if node in flow.from_sample and flow.is_product(node)]
    if any(_IN_LEVEL.match(layer_name(node)) for node in products):
        return _outermost(products)
    blocks: dict[tuple[str, int], list[ir.Node]] = {}
    for node in products:
        if named := _BLOCK.match(layer_name(node)):
            blocks.setdefault((named[1], int(named[2])), []).append(node)
    large = [(*key, nodes) for key, nodes in blocks.items() if len(nodes) >= _FEWEST]
    found = []
    for place, (list_name, index, nodes) in enumerate(large[:-1]):
        if index == 0:
            skipped = frozenset(node for *_, later in large[place + 1 :] for node in later)
            found.append(Candidate(f"{list_name}.0", frozenset(nodes), skipped))
    return found


def layer_name(node: ir.Node) -> str:
    """The layer that a node belongs to: what is in front of the operator in its name."""
    return (node.name or "").partition("/")[0]


def _outermost(products: Sequence[ir.Node]) -> list[Candidate]:
    """Of a UNet: the first layer of the first level down is the head's, the last one of the last level up the tail's."""
    places = {node: (f["side"], int(f["level"]), int(f["index"])) for node in products if (f := _IN_LEVEL.match(layer_name(node)))}
    side, level, index = max(places.values())  # "up_blocks" sorts last
    first = frozenset(node for node, place in places.items() if place == ("down_blocks", 0, 0))
    kept = frozenset(node for node, place in places.items() if place == (side, level, index))
    skipped = frozenset(node for node in products if _LEVELS.match(layer_name(node))) - first - kept
    if side != "up_blocks" or not first or not skipped:
        return []
    return [Candidate("down_blocks.0", first, skipped, f"up_blocks.{level}, layer {index}")]
