"""A runtime of another package: ONNX's own evaluator in Python, "built" by copying the graph, which calls each of its products TOY8.

What stands here is all that a runtime needs to be offered, found, built for, run and judged; nothing in ``dq_deploy`` knows of it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from dq_deploy.artifacts import Artifact, sha256_file
from dq_deploy.engines.build.request import BuildRequest, BuildResult
from dq_deploy.engines.descriptors.descriptor import Builder, EngineDescriptor, Products
from dq_deploy.engines.layer_report.kernels import Kernel, LayerDump
from dq_deploy.engines.running.runner import Array, GraphRunner, InputSpec, graph_file

TOY = EngineDescriptor(
    name="toy",
    title="Toy",
    modules=("onnx",),
    distributions=("onnx",),
    runner="tests.engines.toy_runtime:ToyRunner",
    runs=("bundle", "engine"),
    options=("echo",),
    targets=("qdq",),
    products=(Products("toy8", documented=True),),
    purpose="a runtime of the tests",
    builder=Builder(
        child="tests.engines.toy_runtime",
        target="qdq",
        file="model.toy",
        statement="nothing was chosen",
        reads=lambda installed, built, _: installed == built,
        device="CPU",
    ),
)


class ToyRunner(GraphRunner):
    """A bundle, a file or an engine in ONNX's own evaluator."""

    def __init__(self, source: str | Path | Artifact, *, echo: str = "") -> None:
        onnx = TOY.load()
        built = isinstance(source, Artifact) and source.manifest.kind == "engine"
        model = onnx.load(source.file(TOY.building.file) if built else graph_file(source))
        self._evaluator = ReferenceEvaluator(model)
        self.name = TOY.name
        inputs = {i.name: i.type.tensor_type.shape.dim for i in model.graph.input}
        self.specs = tuple(InputSpec(name, tuple(d.dim_value or None for d in dims), np.dtype(np.float32)) for name, dims in inputs.items())
        self.details: dict[str, Any] = {"engine": self.name, "echo": echo}

    def _infer(self, feeds: dict[str, Array]) -> Array:
        output: Array = self._evaluator.run(None, feeds)[0]
        return output


def main(request_path: str) -> None:
    request = BuildRequest.model_validate_json(Path(request_path).read_bytes())
    shutil.copyfile(request.onnx, request.plan)
    graph = onnx.load(request.onnx).graph
    products = [node for node in graph.node if node.op_type in ("Conv", "MatMul")]
    kernels = [Kernel(name=n.name, type="toy", inputs=(), constants=(), outputs=(), nodes=(n.name,), precision="toy8") for n in products]
    dump = LayerDump(kernels=tuple(kernels), operators={node.name: node.op_type for node in graph.node}, weights_bytes=0)
    hashes = {request.plan: sha256_file(Path(request.plan))}
    BuildResult(sha256=hashes, version="1", compute_capability=None, dump=dump).write(request.result)


if __name__ == "__main__":
    main(sys.argv[1])
