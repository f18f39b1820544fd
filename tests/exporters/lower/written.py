"""One layer as a graph of placeholders, lowered for a target and run in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch

from dq_deploy.exporters.emitter import initializer
from dq_deploy.exporters.lower import lower
from dq_deploy.exporters.onnxruntime_target import OnnxRuntimeTarget
from dq_deploy.exporters.skeleton import DOMAIN
from dq_deploy.exporters.tensorrt_target import TensorRTTarget
from dq_deploy.formats import INT8, of_bits
from dq_deploy.quantization.output_bias import OutputBias
from dq_deploy.quantization.quantizers import ProbabilityQuantizer, TableQuantizer
from tests.tiny import session

TARGETS = {"qdq": TensorRTTarget, "onnxruntime": OnnxRuntimeTarget}
TIMESTEPS = torch.tensor([0.0, 100.0, 500.0])
ASKED = torch.tensor([0.0, 260.0, 900.0, 40.0])  # rows 0, 1, 2 and 0


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(bits: int = 8, *, symmetric: bool = False, axis: int = -1, channels: int = 1, dilated: bool = False) -> TableQuantizer:
    """Three rows that are far apart."""
    made = TableQuantizer(TIMESTEPS, of_bits(bits), symmetric=symmetric, axis=axis, channels=channels)
    zero_points = torch.zeros(3) if symmetric else torch.tensor([-7.0, 3.0, 6.0])
    made.set_tables(torch.tensor([0.02, 0.05, 0.11]) * 2 ** (8 - bits), zero_points)
    if dilated:
        made.dilation.copy_(torch.linspace(1, 2, channels))
    made.freeze()
    return made


def probabilities() -> ProbabilityQuantizer:
    """[0, 1] in 255 steps."""
    made = ProbabilityQuantizer(TIMESTEPS, INT8, symmetric=False, axis=0, channels=1)
    made.freeze()
    return made


class Written:
    """A layer "layer" whose inputs x0, x1 … are quantized by ``quantizers`` (none: floats, of which ``parameters`` are constants)."""

    def __init__(
        self,
        target: str,
        op: str,
        inputs: Sequence[Sequence[int]],
        output: Sequence[int],
        *,
        layer: Any = None,
        quantizers: Mapping[str, Any] | None = None,
        parameters: Sequence[torch.Tensor] = (),
        geometry: Mapping[str, Any] | None = None,
        correction: OutputBias | None = None,
        int4: bool = True,
        static: bool = False,
    ) -> None:
        xs = [_value(f"x{i}", "batch", *shape) for i, shape in enumerate(inputs)]
        timestep = _value("timestep", "batch" if target == "qdq" else 1)
        y = _value("y", "batch", *output)
        quantizers = quantizers or {}
        read = [_quantize(x, name) for x, name in zip(xs, quantizers, strict=True)] if quantizers else list(xs)
        values = list(read)
        nodes = [value.producer() for value in read if value.producer() is not None]
        graph = ir.Graph([*xs, timestep], [y], nodes=[], opset_imports={"": 21, DOMAIN: 1}, name="graph")
        for index, tensor in enumerate(parameters):
            values.append(initializer(graph, f"layer.{('weight', 'bias')[index]}", ir.tensor(tensor.numpy())))
        attributes = ir.convenience.convert_attributes({"name": "layer", **(geometry or {})})
        graph.extend([*nodes, ir.Node(DOMAIN, op, values, attributes, outputs=[y], name="placeholder")])
        self.model, self.one_timestep = ir.Model(graph, ir_version=10), target == "onnxruntime"
        writer = TARGETS[target](graph, timestep, TIMESTEPS, int4=int4, static=static)
        layers = {} if layer is None else {"layer": layer}
        self.sites = lower(self.model, writer, layers, quantizers, correction=correction)
        self.model.opset_imports.pop(DOMAIN)
        passes.RemoveUnusedNodesPass()(self.model)
        passes.TopologicalSortPass()(self.model)

    def ops(self, prefix: str = "layer/") -> list[str]:
        """Operators of the nodes whose names begin so."""
        return [node.op_type for node in self.model.graph if str(node.name).startswith(prefix)]

    def node(self, name: str) -> ir.Node:
        (found,) = (node for node in self.model.graph if node.name == name)
        return found

    def constant(self, name: str) -> np.ndarray:
        value = self.model.graph.initializers[name].const_value
        assert value is not None
        return value.numpy()

    def run(self, folder: Path, timestep: torch.Tensor, *xs: torch.Tensor) -> torch.Tensor:
        """The output; sample by sample where the graph takes one timestep."""
        file = folder / "model.onnx"
        ir.save(self.model, file)
        running = session(file)
        feeds = {**{f"x{i}": x.numpy() for i, x in enumerate(xs)}, "timestep": timestep.numpy()}
        if not self.one_timestep:
            return torch.from_numpy(running.run(None, feeds)[0])
        found = [running.run(None, {name: value[i : i + 1] for name, value in feeds.items()})[0] for i in range(len(timestep))]
        return torch.from_numpy(np.concatenate(found))


def _value(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def _quantize(x: ir.Value, name: str) -> ir.Value:
    output = ir.Value(name=f"{name}:placeholder", type=x.type, shape=x.shape)
    ir.Node(DOMAIN, "Quantize", [x], ir.convenience.convert_attributes({"name": name}), outputs=[output], name=name)
    return output


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the order of fp32 operations; a code that is off by one would differ by a hundred times more."""
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))
