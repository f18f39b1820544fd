"""A bundle's ONNX graph behind the inputs of the one that optimum-onnx has exported."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...artifacts import Artifact
from ...artifacts.details import BundleDetails
from ...artifacts.reading import read_onnx
from ...artifacts.writing import write_bytes
from ..running.runner import MODEL_FILE
from .interface import Front, Port, fronts


def ports(file: Path) -> tuple[list[Port], str]:
    """The inputs of a graph and the name of its first output. Raises ArtifactError for what is not ONNX."""
    graph = read_onnx(file).graph
    return [_port(value) for value in graph.input], graph.output[0].name


def _port(value: Any) -> Port:
    tensor = value.type.tensor_type
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return Port(value.name, ir.DataType(tensor.elem_type).numpy().name, sizes)


def write(bundle: Artifact[BundleDetails], replaced: Path, file: Path, *, types: Mapping[str, str], batch: int | None) -> None:
    """Write the bundle's graph to ``file`` with the inputs and the output of the graph at ``replaced``, its data beside it.

    ``types`` are the types of inputs that are to have another than there; ``batch`` fixes the number of samples.
    """
    source = bundle.file(MODEL_FILE)
    theirs, output = ports(replaced)
    theirs = [Port(port.name, types.get(port.name, port.dtype), port.shape) for port in theirs]
    found = fronts(ports(source)[0], theirs, bundle.path, replaced.parent)
    model = ir.from_proto(read_onnx(source))
    _put_in_front(model, theirs, found, batch)
    for value in (value for node in model.graph for value in node.outputs if value.name == output):
        value.name = f"{output}/inside"
    model.graph.outputs[0].name = output
    for name in bundle.manifest.files:
        if name.startswith(f"{MODEL_FILE}."):
            shutil.copyfile(bundle.file(name), file.parent / name)
    write_bytes(file, ir.to_proto(model).SerializeToString())


def _put_in_front(model: ir.Model, theirs: list[Port], found: Mapping[str, Front], batch: int | None) -> None:
    graph = model.graph
    own = {value.name: value for value in graph.inputs}
    first = str(graph.inputs[0].name)
    nodes: list[ir.Node] = []

    def add(operator: str, *values: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(operator, list(values), attributes=attributes)
        node.name = node.outputs[0].name = f"front/{operator}_{len(nodes)}"
        nodes.append(node)
        return node.outputs[0]

    def numbers(values: list[int]) -> ir.Value:
        name = f"front/sizes_{'_'.join(map(str, values))}"
        if name not in graph.initializers:
            graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(values, ir.DataType.INT64, name=name)))
        return graph.initializers[name]

    given = {port.name: _input(port, own[port.name], found[port.name], batch) for port in theirs}
    samples = numbers([batch]) if batch else add("Shape", given[first], start=0, end=1)
    for port in theirs:
        before, after = given[port.name], own[port.name]
        value = before
        if before.dtype != after.dtype:
            value = add("Cast", value, to=int(after.dtype or ir.DataType.FLOAT))
        value = _shaped(value, after, found[port.name], samples, add, numbers)
        after.name = f"{port.name}/taken"
        after.replace_all_uses_with(value)
    graph.inputs.clear()
    graph.inputs.extend(given[port.name] for port in theirs)
    graph.insert_before(graph[0], nodes)


def _input(port: Port, own: ir.Value, front: Front, batch: int | None) -> ir.Value:
    """The graph's new input: sizes are what our graph has, which are exact, but for what is given once for the whole batch."""
    assert own.shape is not None
    if front is Front.SAME:
        sizes = [batch or own.shape[0], *own.shape[1:]]
    else:
        free = ir.SymbolicDim(f"{port.name}_given")
        sizes = list(own.shape[1:]) if front is Front.SHARED else [free if size is None else size for size in port.shape]
    return ir.Value(name=port.name, type=ir.TensorType(ir.DataType.from_numpy(np.dtype(port.dtype))), shape=ir.Shape(sizes))


def _shaped(value: ir.Value, after: ir.Value, front: Front, samples: ir.Value, add: Callable[..., ir.Value],
            numbers: Callable[[list[int]], ir.Value]) -> ir.Value:  # fmt: skip
    assert after.shape is not None
    if front is Front.SAME:
        return value
    if front is Front.SHARED:
        rows = add("Unsqueeze", value, numbers([0]))
        return add("Expand", rows, add("Concat", samples, numbers([1] * (len(after.shape) - 1)), axis=0))
    given = add("Reshape", value, numbers([-1]))
    if after.shape[0] == 1:  # a graph with one timestep for a whole batch: some pipelines repeat it for each sample
        return add("Slice", given, numbers([0]), numbers([1]))
    return add("Expand", given, samples)
