"""A bundle's graph as OpenVINO's IR, behind the inputs of the one that optimum-intel has exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...artifacts import Artifact
from ...artifacts.details import BundleDetails
from ...artifacts.reading import without_links
from ..openvino.descriptor import OPENVINO
from ..openvino.rewrites import rewrite
from ..openvino.runner import read_graph, refusal
from ..running.runner import MODEL_FILE
from .interface import Front, Port, fronts

_TYPES = {"f32": "float32", "f16": "float16", "f64": "float64", "i32": "int32", "i64": "int64", "boolean": "bool"}
_OPENVINO = {name: short for short, name in _TYPES.items()}


def ports(model: Any) -> list[Port]:
    """The inputs of OpenVINO's model."""
    return [Port(port.any_name, _TYPES.get(_type(port), _type(port)), _sizes(port)) for port in model.inputs]


def _type(port: Any) -> str:
    return str(port.get_element_type().get_type_name())


def _sizes(port: Any) -> tuple[int | None, ...]:
    return tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape())


def write(bundle: Artifact[BundleDetails], replaced: Path, file: Path, *, types: Mapping[str, str], batch: int | None) -> None:
    """Write the bundle's graph to ``file`` (and a ``.bin`` beside it) with the inputs and the output of the IR at ``replaced``.

    ``types`` are the types of inputs that are to have another than there. With ``batch``, that number of samples at a run, every size is
    fixed, and OpenVINO is given the graph rewritten for its kernels (openvino/rewrites).

    Raises ArtifactError where OpenVINO reads one of the two not.
    """
    openvino = OPENVINO.load()
    other = _read_ir(openvino, replaced)
    theirs = [Port(port.name, types.get(port.name, port.dtype), port.shape) for port in ports(other)]
    with without_links(bundle.path, bundle.manifest.files) as folder:
        model = read_graph(openvino, folder / MODEL_FILE)
        found = fronts(ports(model), theirs, bundle.path, replaced.parent)
        if batch:
            model.reshape({port.any_name: [batch, *list(port.get_partial_shape())[1:]] for port in model.inputs})
            rewrite(model)
        _put_in_front(openvino, model, theirs, found)
        model.outputs[0].get_tensor().set_names({other.outputs[0].any_name})
        model.validate_nodes_and_infer_types()
        openvino.save_model(model, str(file), compress_to_fp16=False)


def _read_ir(openvino: Any, file: Path) -> Any:
    try:
        return openvino.Core().read_model(str(file))
    except RuntimeError as error:
        raise refusal(openvino, file, error) from error


def _put_in_front(openvino: Any, model: Any, theirs: list[Port], found: Mapping[str, Front]) -> None:
    from openvino import opset13 as ops

    own = {port.any_name: port for port in model.inputs}
    first = model.inputs[0].any_name
    given = {port.name: _parameter(openvino, port, own[port.name], found[port.name]) for port in theirs}
    samples = ops.gather(ops.shape_of(given[first]), ops.constant([0]), ops.constant(0))
    olds = []
    for port in theirs:
        before, after = given[port.name], own[port.name]
        value = before.output(0)
        if _type(after) != _OPENVINO[port.dtype]:
            value = ops.convert(value, _type(after)).output(0)
        value = _shaped(ops, value, after, found[port.name], samples)
        node = after.get_node()
        node.set_friendly_name(f"{port.name}/taken")
        after.get_tensor().set_names(set())
        after.replace(value)
        before.output(0).get_tensor().set_names({port.name})
        olds.append(node)
    for node in olds:
        model.remove_parameter(node)
    model.add_parameters([given[port.name] for port in theirs])


def _parameter(openvino: Any, port: Port, own: Any, front: Front) -> Any:
    """The graph's new input. Its sizes are our graph's: what does not fit, OpenVINO refuses before it runs anything.

    optimum-intel opens all sizes when it loads a pipeline; the reshapes behind the inputs hold them then.
    """
    from openvino import opset13 as ops

    sizes = _sizes(own) if front is Front.SAME else [None] * len(port.shape)
    return ops.parameter([-1 if size is None else size for size in sizes], getattr(openvino.Type, _OPENVINO[port.dtype]), port.name)


def _shaped(ops: Any, value: Any, after: Any, front: Front, samples: Any) -> Any:
    sizes = _sizes(after)
    if front is Front.SAME:
        # 0 keeps what came: at another size than the graph's own the reshape fails, and draws nothing wrong.
        return ops.reshape(value, ops.constant([size or 0 for size in sizes]), special_zero=True).output(0)
    batch = ops.constant([sizes[0]]) if sizes[0] else samples
    if front is Front.EACH_SAMPLE:
        return ops.broadcast(ops.reshape(value, ops.constant([-1]), special_zero=False), batch).output(0)
    rows = ops.unsqueeze(value, ops.constant([0]))
    shape = ops.concat([batch, ops.shape_of(value)], 0)
    spread = ops.broadcast(rows, shape)
    return ops.reshape(spread, ops.constant([size or 0 for size in sizes]), special_zero=True).output(0)
