"""torch's exporter is run once for each graph and not for each bundle: tests export the same tiny networks in many forms.

What follows it (``simplify``, the lowering, the precision) runs for every bundle. With ``--nightly`` each one is exported from the start,
and so it is in a test with ``exported_anew``: values to which the exporter gave no name may get another one when a graph is read again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator

import onnx_ir as ir
import pytest
import torch
from torch.fx import GraphModule
from torch.onnx._internal.exporter import _registration

from dq_deploy.exporters import skeleton
from tests.shared import made_once

_EXPORTED = skeleton.graph_exported


@pytest.fixture
def exported_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the exporter for every bundle of this test."""
    monkeypatch.setattr(skeleton, "graph_exported", _EXPORTED)


@pytest.fixture(scope="session", autouse=True)
def exported_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the exporter makes of a graph, for all workers."""

    def kept(graph: GraphModule, inputs: dict[str, torch.Tensor], free: skeleton.Axes) -> ir.Model:
        name = f"skeletons/{_key(graph, inputs, free)}"
        return ir.load(made_once(tmp_path_factory, name, lambda path: ir.save(_EXPORTED(graph, inputs, free), path)))

    # The exporter builds its table of operators anew for each graph, a fifth of its time for these.
    table = staticmethod(functools.cache(_registration.ONNXRegistry.from_torchlib))
    with pytest.MonkeyPatch.context() as patch:
        if not request.config.getoption("--nightly"):
            patch.setattr(skeleton, "graph_exported", kept)
            patch.setattr(_registration.ONNXRegistry, "from_torchlib", table)
        yield


def _key(graph: GraphModule, inputs: dict[str, torch.Tensor], free: skeleton.Axes) -> str:
    """A hash of everything that the exporter reads: the code, where its nodes come from, the tensors, names and types of the inputs."""
    said = [graph.code, *(f"{node.name} {node.meta.get('path')}" for node in graph.graph.nodes)]
    said += [f"{name} {value.dtype} {list(value.shape)} {free.get(name)}" for name, value in inputs.items()]
    found = hashlib.sha256("\n".join(said).encode())
    for name, value in sorted({**dict(graph.named_parameters()), **dict(graph.named_buffers())}.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
