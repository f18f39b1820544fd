"""How large the values of an exported graph are: it is run as it is written on the checkpoint's own reference samples.

What is measured is what half precision would have to hold, operators' inner steps among it, which PyTorch's graph does not show.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..artifacts.reading import read_ir
from ..quantization.calibration.trajectories import Trajectories
from ..quantization.checkpoint import Checkpoint
from ..versions import install_command
from .exact_sums import for_this_cpu
from .session import session_as_written

_TIMESTEPS = 5  # evenly among the calibrated ones, first and last included
_WHY = ": an fp16 export runs the graph, to find the values that fp16 cannot hold"
Array = np.ndarray[Any, Any]


def largest_values(model: ir.Model, values: Mapping[ir.Value, bool], checkpoint: Checkpoint,
                   write: Callable[[ir.Model, Path], None]) -> dict[ir.Value, float]:  # fmt: skip
    """Largest |v| of every value on the reference's first seed at five of its timesteps; NaN counts as infinity.

    ``values`` says of each whether only a softmax reads it: then a row's largest entry counts, as the others may be masked. ``write``
    saves a model; ``model`` is left as it was.

    Raises EnvironmentProblem without ONNX Runtime.
    """
    with tempfile.TemporaryDirectory(prefix="dq-deploy-ranges-") as folder:
        file = Path(folder) / "model.onnx"
        before, nodes, outputs = list(model.graph.outputs), *_probes(values)
        try:
            model.graph.extend(nodes)
            model.graph.outputs[:] = outputs
            write(model, file)
        finally:
            model.graph.outputs[:] = before
            model.graph.remove(reversed(nodes), safe=True)
        _made_exact(file)
        session = session_as_written(file, why=_WHY, hint=f"{install_command('cpu')}, or export with --dtype fp32 or --dtype bf16")
        found = [np.abs(np.array(session.run(None, feeds), dtype=np.float64)) for feeds in _feeds(checkpoint, session)]
    largest = np.max(np.nan_to_num(np.stack(found), nan=np.inf), axis=0)
    return dict(zip(values, largest.tolist(), strict=True))


def _made_exact(file: Path) -> None:
    model = read_ir(file)
    if for_this_cpu(model):
        ir.external_data.load_to_model(model)
        ir.save(model, file)  # noqa: TID251


def _probes(values: Mapping[ir.Value, bool]) -> tuple[list[ir.Node], list[ir.Value]]:
    """Nodes that give each value's largest magnitude, as a scalar."""
    nodes, outputs = [], []
    for index, (value, row) in enumerate(values.items()):
        parts = []
        measured = value
        if row:
            axes = ir.node("Constant", [], {"value_ints": [-1]})
            parts += [axes, ir.node("ReduceMax", [value, axes.outputs[0]], {"keepdims": 0})]
            measured = parts[-1].outputs[0]
        parts.append(ir.node("Abs", [measured]))
        parts.append(ir.node("ReduceMax", [parts[-1].outputs[0]], {"keepdims": 0}))
        for number, node in enumerate(parts):
            node.name = node.outputs[0].name = f"dq_deploy.range_{index}_{number}"
            node.outputs[0].type = ir.TensorType(ir.DataType.INT64 if node.op_type == "Constant" else ir.DataType.FLOAT)
        parts[-1].outputs[0].shape = ir.Shape([])
        nodes += parts
        outputs.append(parts[-1].outputs[0])
    return nodes, outputs


def _feeds(checkpoint: Checkpoint, session: Any) -> list[dict[str, Array]]:
    return [feeds for sized in checkpoint.reference().by_size for feeds in _feeds_of(checkpoint, sized, session)]


def _feeds_of(checkpoint: Checkpoint, reference: Trajectories, session: Any) -> list[dict[str, Array]]:
    """Of one size."""
    shapes = {spec.name: spec.shape for spec in session.get_inputs()}
    feeds = []
    for index in sorted({int(i) for i in np.linspace(0, len(reference.timesteps) - 1, _TIMESTEPS)}):
        inputs = checkpoint.inputs(reference, index, slice(reference.per_seed))
        if shapes.get("timestep") == [1]:
            inputs["timestep"] = inputs["timestep"][:1]
        feeds.append({name: value.numpy() for name, value in inputs.items() if name in shapes})
    return feeds
