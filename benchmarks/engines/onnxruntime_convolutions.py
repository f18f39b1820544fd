"""Forms of a quantized convolution in ONNX Runtime beside the float one: ``python -m benchmarks.engines.onnxruntime_convolutions``.

Each takes and gives fp32, channels first, with scale and zero-point gathered by row, as the ``onnxruntime`` target has them. Time is the
thread's own processor time, one thread, the least of the rounds, all forms in turn: other work on the machine counts for little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_SHAPES = "4,320,32,320,3;4,128,16,128,3;4,64,32,64,3;4,32,32,32,3;4,16,32,16,3;4,64,32,4,3;4,128,32,128,1;4,32,32,32,1;1,64,32,64,3"
Shape = tuple[int, int, int, int, int]


class _Graph:
    """A convolution of [N, C, S, S] with [O, C, k, k], stride 1, same padding."""

    def __init__(self, shape: Shape) -> None:
        self.n, self.c, self.s, self.o, self.k = shape
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        random = np.random.default_rng(0)
        self.weight = random.integers(-127, 128, (self.o, self.c, self.k, self.k)).astype(np.int8)
        self.scale = (random.random(self.o) * 1e-3 + 1e-3).astype(np.float32)
        self.bias = random.standard_normal(self.o).astype(np.float32)
        self.conv = {"kernel_shape": [self.k] * 2, "pads": [self.k // 2] * 4}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any = None) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def row(self, value: float, dtype: Any) -> str:
        return self.op("Gather", self.constant(np.full(20, value, dtype)), "row")

    def codes(self) -> tuple[str, str, str]:
        scale, zero_point = self.row(0.03, np.float32), self.row(120, np.uint8)
        return self.op("QuantizeLinear", "x", scale, zero_point), scale, zero_point

    def model(self) -> bytes:
        self.nodes[-1].output[0] = "y"
        shape: list[str | int | None] = ["batch", self.c, self.s, self.s]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape), helper.make_tensor_value_info("row", TensorProto.INT64, [])]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "convolution", inputs, [output], self.constants)
        made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
        return made


def _float(g: _Graph) -> None:
    weight = g.weight.astype(np.float32) * g.scale[:, None, None, None]
    g.op("Conv", "x", g.constant(weight), g.constant(g.bias), **g.conv)


def _dequantized(g: _Graph, *, output: bool = False) -> None:
    codes, scale, zero_point = g.codes()
    weight = g.op("DequantizeLinear", g.constant(g.weight), g.constant(g.scale), g.constant(np.zeros(g.o, np.int8)), axis=0)
    y = g.op("Conv", g.op("DequantizeLinear", codes, scale, zero_point), weight, **g.conv)
    if output:
        rows = g.row(40.0, np.float32), g.row(128, np.uint8)
        y = g.op("DequantizeLinear", g.op("QuantizeLinear", y, *rows), *rows)
    g.op("Add", y, g.constant(g.bias.reshape(1, -1, 1, 1)))


def _quantized_output(g: _Graph) -> None:
    _dequantized(g, output=True)


def _integer(g: _Graph) -> None:
    codes, scale, zero_point = g.codes()
    y = g.op("Cast", g.op("ConvInteger", codes, g.constant(g.weight), zero_point, **g.conv), to=TensorProto.FLOAT)
    y = g.op("Mul", y, g.op("Mul", scale, g.constant(g.scale.reshape(1, -1, 1, 1))))
    g.op("Add", y, g.constant(g.bias.reshape(1, -1, 1, 1)))


def _patches(g: _Graph) -> None:
    codes, scale, zero_point = g.codes()
    pad, padded = g.k // 2, g.s + 2 * (g.k // 2)
    rows = g.op("Transpose", codes, perm=[0, 2, 3, 1])
    if g.k > 1:
        y, x, a, b = np.meshgrid(*(np.arange(n) for n in (g.s, g.s, g.k, g.k)), indexing="ij")
        rows = g.op("Pad", rows, g.constant([0, pad, pad, 0, 0, pad, pad, 0], np.int64), zero_point)
        rows = g.op("Reshape", rows, g.constant([-1, padded * padded, g.c], np.int64))
        rows = g.op("Gather", rows, g.constant(((y + a) * padded + x + b).reshape(-1), np.int32), axis=1)
        rows = g.op("Reshape", rows, g.constant([-1, g.s, g.s, g.k * g.k * g.c], np.int64))
    weight = np.ascontiguousarray(g.weight.transpose(2, 3, 1, 0).reshape(-1, g.o))
    result = g.op("Cast", g.op("MatMulInteger", rows, g.constant(weight), zero_point), to=TensorProto.FLOAT)
    result = g.op("Mul", result, g.op("Mul", scale, g.constant(g.scale)))
    g.op("Transpose", g.op("Add", result, g.constant(g.bias)), perm=[0, 3, 1, 2])


FORMS: dict[str, Callable[[_Graph], None]] = {
    "float": _float,
    "Q/DQ, float product": _dequantized,
    "QLinearConv (output in 8 bits)": _quantized_output,
    "ConvInteger": _integer,
    "patches × MatMulInteger": _patches,
}


def times(shape: Shape, rounds: int, **config: str) -> dict[str, float]:
    """Least processor time of a run of each form, in seconds."""
    sessions = {}
    for name, write in FORMS.items():
        graph = _Graph(shape)
        write(graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        for key, value in config.items():
            options.add_session_config_entry(key, value)
        sessions[name] = onnxruntime.InferenceSession(graph.model(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((shape[0], shape[1], shape[2], shape[2])).astype(np.float32)
    feeds = {"x": x, "row": np.array(3, np.int64)}
    least = dict.fromkeys(sessions, float("inf"))
    for _ in range(rounds):
        for name, session in sessions.items():
            start = time.thread_time()
            session.run(None, feeds)
            least[name] = min(least[name], time.thread_time() - start)
    return least


@click.command()
@click.option("--shapes", default=_SHAPES, show_default=True, help="Batch, channels, side, output channels and kernel of each.")
@click.option("--rounds", default=20, show_default=True)
@click.option("--unsigned", is_flag=True, help="With session.x64quantprecision: products of uint8 and uint8.")
def main(shapes: str, rounds: int, unsigned: bool) -> None:
    """Write a table: time of the float convolution, and of each form relative to it."""
    config = {"session.x64quantprecision": "1"} if unsigned else {}
    click.echo(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, one thread")
    click.echo("| N, C, side, O, k | " + " | ".join(FORMS) + " |\n|---|" + "---:|" * len(FORMS))
    for text in shapes.split(";"):
        n, c, s, o, k = (int(v) for v in text.split(","))
        found = times((n, c, s, o, k), rounds, **config)
        first = found["float"]
        cells = [f"{first * 1e3:.2f} ms", *(f"{value / first:.2f}" for name, value in found.items() if name != "float")]
        click.echo(f"| {n}, {c}, {s}, {o}, {k} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
