"""What the kernels of a loaded engine multiply in, product by product, beside what its builder planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...artifacts.records import Record
from ..descriptors.descriptor import Op
from . import LayerReport
from .kernels import Kernel, product_format, rank


class ExecutedProduct(Record):
    """A product of the graph. ``planned_format`` is what its layer was quantized for (a float's where it was not).

    ``planned`` is what the builder chose, ``executed`` what the loaded engine's kernel says that it multiplies in; None where no kernel
    names it.
    """

    node: str
    op: Op
    planned_format: str | None
    planned: str | None
    executed: str | None
    kernel: str | None

    @property
    def as_planned(self) -> bool:
        """Whether the kernel does what the builder chose."""
        return self.executed == self.planned


def executed_products(report: LayerReport, kernels: Sequence[Kernel]) -> list[ExecutedProduct]:
    """Every product of a layer report with the kernel that runs it."""
    by_node: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        for node in kernel.nodes:
            by_node.setdefault(node, []).append(kernel)
    found = []
    for product in report.contractions:
        runs = min(by_node.get(product.node, ()), key=rank, default=None)
        found.append(
            ExecutedProduct(
                node=product.node, op=product.op, planned_format=product.planned_format, planned=product.precision,
                executed=product_format(runs) if runs else None, kernel=runs.name if runs else None,
            )
        )  # fmt: skip
    return found


def counted(products: Sequence[ExecutedProduct]) -> dict[str, int]:
    """How many products are executed in each format."""
    return dict(Counter(product.executed or "no kernel" for product in products))
