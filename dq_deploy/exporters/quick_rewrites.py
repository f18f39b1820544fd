"""The exporter's own optimizer without its quadratic part.

onnxscript tries every rewrite rule on every node. For a rule that replaces two nodes at once it lists the whole graph each time before it
looks at the node: with the four thousand nodes of a Stable Diffusion that is a third of an export. What such a rule can never start from is
turned away here; the rules themselves, and what they make of a graph, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from onnxscript import rewriter


@contextmanager
def quick_rewrites() -> Iterator[None]:
    """While the block runs, rules of several nodes look only at nodes that they can start from.

    It reaches into onnxscript; where another version has nothing of the kind, nothing changes.
    """
    with ExitStack() as stack:
        for rule in getattr(rewriter, "_DEFAULT_REWRITE_RULES", ()):
            pattern = getattr(rule, "_target_pattern", None)
            if pattern is not None and not pattern.has_single_output_node:
                first = pattern.output_nodes[0].op_identifier()
                stack.enter_context(patch.object(rule, "try_rewrite", _starting_from(first, rule.try_rewrite)))
        yield


def _starting_from(first: Any, try_rewrite: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(model: Any, graph: Any, node: Any, **options: Any) -> Any:
        return try_rewrite(model, graph, node, **options) if first in (None, node.op_identifier()) else None

    return guarded
