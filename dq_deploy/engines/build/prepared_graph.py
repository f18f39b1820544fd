"""A bundle's graph as a builder is given it: as it is, or rewritten for what the engine fuses."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import onnx_ir as ir

from ...artifacts import Artifact
from ...artifacts.details import BundleDetails
from ...artifacts.reading import without_links
from ...artifacts.writing import write_bytes
from ..descriptors.descriptor import Builder
from ..layer_report.kernels import AttentionPlan

_GRAPH = "model.onnx"


@dataclass(frozen=True)
class PreparedGraph:
    """``rewritten`` is the graph's protobuf, None where the bundle's own is built; ``attentions`` are what is planned for each of them."""

    bundle: Artifact[BundleDetails]
    attentions: tuple[AttentionPlan, ...] = ()
    rewritten: bytes | None = None

    @property
    def float_attention(self) -> list[str]:
        """The bundle's quantized products that are taken in float, by layer."""
        fused = {layer for plan in self.attentions if plan.fused for layer in (plan.scores, plan.values)}
        return [layer.name for layer in self.bundle.details.layers if layer.name in fused]

    @contextmanager
    def file(self) -> Iterator[Path]:
        """The graph's file, with the data files that it names beside it."""
        with without_links(self.bundle.path, self.bundle.manifest.files) as folder:
            if self.rewritten is None:
                yield (folder / _GRAPH).absolute()
                return
            with tempfile.TemporaryDirectory(prefix="dq-deploy-graph-") as scratch:
                for name in self.bundle.manifest.files:
                    if name != _GRAPH:
                        (Path(scratch) / name).parent.mkdir(parents=True, exist_ok=True)
                        (Path(scratch) / name).symlink_to((folder / name).absolute())
                write_bytes(Path(scratch) / _GRAPH, self.rewritten)
                yield Path(scratch) / _GRAPH


def prepare(builder: Builder, bundle: Artifact[BundleDetails], graph: Any, capabilities: Sequence[tuple[int, int] | None]) -> PreparedGraph:
    """The graph (an onnx ModelProto, checked) as the builder takes it for these compute capabilities."""
    if builder.fuse is None:
        return PreparedGraph(bundle)
    model = ir.from_proto(graph)
    attentions = tuple(resolve_name(builder.fuse)(model, bundle.details, capabilities))
    changed = any(plan.fused for plan in attentions)
    return PreparedGraph(bundle, attentions, ir.to_proto(model).SerializeToString() if changed else None)
