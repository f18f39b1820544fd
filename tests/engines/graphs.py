"""Small quantized graphs, written node by node, as bundles for the engine builders. Four calibrated timesteps: 0, 1, 2, 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from dq_deploy.artifacts import Artifact, Manifest, create_artifact, open_artifact

ROWS = np.array([0.01, 0.02, 0.05, 0.1], np.float32)


class Graph:
    """Collects nodes and initializers; every method returns the name of the value that it made."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.layers: list[dict[str, Any]] = []
        self.random = np.random.default_rng(seed)

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def row(self) -> str:
        """Index of the calibrated timestep nearest to each sample's, [N]: compare with the midpoints and count."""
        if any(node.name == "select/Count" for node in self.nodes):
            return "select/Count:0"
        column = self.node("Unsqueeze", ["timestep", self.constant("select.axis", np.array([1]))], "select/Unsqueeze")
        passed = self.node("Greater", [column, self.constant("select.midpoints", np.array([0.5, 1.5, 2.5], np.float32))], "select/Greater")
        return self.node(
            "ReduceSum", [self.node("Cast", [passed], "select/Cast", to=TensorProto.INT64), "select.axis"], "select/Count", keepdims=0
        )

    def gathered(self, name: str, table: np.ndarray, rank: int) -> str:
        """The batch's rows of a table, [N, 1, …]."""
        return self.node("Gather", [self.constant(name, table.reshape(-1, *[1] * (rank - 1))), self.row()], f"{name}/Gather")

    def unit_qdq(self, value: str, name: str) -> str:
        """QuantizeLinear and DequantizeLinear of scale 1."""
        pair = [self.constant("one", np.float32(1)), self.constant("zero", np.int8(0))]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [value, *pair], f"{name}/Q"), *pair], f"{name}/DQ")

    def weight(self, name: str, shape: tuple[int, ...], axis: int) -> str:
        codes = self.constant(f"{name}.weight.codes", self.random.integers(-127, 128, shape).astype(np.int8))
        scale = self.constant(f"{name}.weight.scale", self.random.uniform(0.001, 0.01, shape[axis]).astype(np.float32))
        return self.node("DequantizeLinear", [codes, scale], f"{name}/WeightDQ", axis=axis)

    def quantize(self, value: str, name: str, rank: int) -> tuple[str, str]:
        """Divide by s_t through a Q/DQ pair of scale 1, and s_t."""
        scale = self.gathered(f"{name}.scale", ROWS, rank)
        scaled = self.node("Mul", [value, self.node("Reciprocal", [scale], f"{name}/Inverse")], f"{name}/Scale")
        return self.unit_qdq(scaled, name), scale

    def conv(self, value: str, name: str, inputs: int, outputs: int) -> str:
        quantized, scale = self.quantize(value, name, 4)
        y = self.node("Conv", [quantized, self.weight(name, (outputs, inputs, 3, 3), 0)], f"{name}/Conv", pads=[1, 1, 1, 1])
        self.plan(name, "conv2d")
        return self.finish(y, name, scale, (1, outputs, 1, 1))

    def linear(self, value: str, name: str, inputs: int, outputs: int, *, shared: tuple[str, str] | None = None) -> str:
        quantized, scale = shared or self.quantize(value, name, 3)
        y = self.node("MatMul", [quantized, self.weight(name, (inputs, outputs), 1)], f"{name}/MatMul")
        self.plan(name, "linear")
        return self.finish(y, name, scale, (outputs,))

    def product(self, a: str, b: str, name: str, *, transpose: bool = False) -> str:
        left, left_scale = self.quantize(a, f"{name}.a", 3)
        right, right_scale = self.quantize(b, f"{name}.b", 3)
        if transpose:
            right = self.node("Transpose", [right], f"{name}.b/Transpose", perm=[0, 2, 1])
        y = self.node("MatMul", [left, right], f"{name}/MatMul")
        self.plan(name, "matmul")
        return self.node("Mul", [self.node("Mul", [y, left_scale], f"{name}/ScaleA"), right_scale], f"{name}/ScaleB")

    def finish(self, value: str, name: str, scale: str, shape: tuple[int, ...]) -> str:
        scaled = self.node("Mul", [value, scale], f"{name}/Rescale")
        return self.node("Add", [scaled, self.constant(f"{name}.bias", self.random.normal(size=shape).astype(np.float32))], f"{name}/Bias")

    def plan(self, name: str, op: str) -> None:
        self.layers.append({"name": name, "op": op, "macs": 1000, "output": f"{name}/Bias:0", "activation_bits": 8, "quantizers": [name]})

    def model(self, output: str, rank: int, shape: list[int | str]) -> onnx.ModelProto:
        """The checked model: inputs ``sample`` of ``shape`` and ``timestep`` [batch], an output of ``rank`` dimensions."""
        self.nodes.append(helper.make_node("Identity", [output], ["out_sample"], name="output"))
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("sample", shape), ("timestep", ["batch"]))]
        result = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, [None] * rank)
        graph = helper.make_graph(self.nodes, "graph", inputs, [result], list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def make_bundle(
    path: Path, graph: Graph, output: str, shape: list[int | str], *, rank: int = 0, target: str = "qdq", external: bool = False
) -> Artifact:
    """The graph as a bundle with every layer that it planned. ``rank`` of the output: by default the input's."""
    model = graph.model(output, rank or len(shape), shape)
    manifest = Manifest(
        kind="bundle",
        model="tests:graph",
        quantization={"weight_bits": 8, "activation_bits": 8},
        scheduler={"class": "DDPMScheduler", "config": {}, "sha256": "0" * 64},
        timesteps=[0.0, 1.0, 2.0, 3.0],
        details={
            "target": target,
            "dtype": "fp32",
            "float": False,
            "inputs": [
                {"name": "sample", "dtype": "float32", "shape": shape},
                {"name": "timestep", "dtype": "float32", "shape": ["batch"]},
            ],
            "output": "out_sample",
            "component": "unet",
            "pipeline_class": "DDPMPipeline",
            "model_config": {"_class_name": "UNet2DModel"},
            "sample_shape": [size if isinstance(size, int) else 16 for size in shape[1:]],
            "source": {"reference": "tests:graph", "sha256": "0" * 64},
            "layers": graph.layers,
            "float_layers": [],
            "quantizers": [],
        },
    )
    with create_artifact(path, manifest) as work:
        onnx.save(model, work / "model.onnx", save_as_external_data=external, location="model.onnx.data", size_threshold=0)
    return open_artifact(path, "bundle")


def network(path: Path, **options: Any) -> Artifact:
    """Two convs, then q, k, v on one quantizer, both attention products and a projection: every kind of planned layer."""
    graph = Graph()
    x = graph.node("Relu", [graph.conv("sample", "down.conv1", 8, 16)], "down.act/Relu")
    x = graph.conv(x, "down.conv2", 16, 16)
    tokens = graph.node("Reshape", [x, graph.constant("tokens", np.array([0, 16, 64]))], "attn/Reshape")
    shared = graph.quantize(tokens, "attn.tokens", 3)
    q, k, v = (graph.linear(tokens, f"attn.to_{n}", 64, 32, shared=shared) for n in "qkv")
    scores = graph.node("Softmax", [graph.product(q, k, "attn.qk", transpose=True)], "attn/Softmax", axis=-1)
    output = graph.linear(graph.product(scores, v, "attn.pv"), "attn.to_out", 32, 64)
    return make_bundle(path, graph, output, ["batch", 8, 8, 8], rank=3, **options)


def any_size(path: Path) -> Artifact:
    """Two convs on pictures of any height and width."""
    graph = Graph()
    output = graph.conv(graph.conv("sample", "first", 8, 16), "second", 16, 8)
    return make_bundle(path, graph, output, ["batch", 8, "height", "width"])


def int4_linear(path: Path) -> Artifact:
    """A MatMul with INT4 weights and INT8 activations."""
    graph = Graph()
    quantized, scale = graph.quantize("sample", "layer", 3)
    codes = graph.random.integers(-7, 8, (64, 64)).astype(np.float32)
    packed = helper.make_tensor("layer.weight.codes", TensorProto.INT4, codes.shape, codes.ravel())
    graph.constants[packed.name] = packed
    weight_scale = graph.constant("layer.weight.scale", graph.random.uniform(0.001, 0.01, 64).astype(np.float32))
    weight = graph.node("DequantizeLinear", [packed.name, weight_scale], "layer/WeightDQ", axis=1)
    graph.plan("layer", "linear")
    product = graph.node("MatMul", [quantized, weight], "layer/MatMul")
    return make_bundle(path, graph, graph.finish(product, "layer", scale, (64,)), ["batch", 16, 64])


def fp8_linear(path: Path) -> Artifact:
    """A MatMul of FP8 activations, static, and FP8 weights with a scale for each channel."""
    graph = Graph()
    scale, zero = graph.constant("x.scale", np.float32(0.05)), helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    graph.constants["zero"] = zero
    x = graph.node("DequantizeLinear", [graph.node("QuantizeLinear", ["sample", scale, "zero"], "layer/Q"), scale, "zero"], "layer/DQ")
    # As raw bytes, as exporters have them: OpenVINO 2026.4 reads the other encoding of FP8 wrongly from a file.
    codes = graph.random.normal(size=(64, 64)).astype(ir.DataType.FLOAT8E4M3FN.numpy())
    graph.constants["w"] = helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, (64, 64), codes.tobytes(), raw=True)
    weight_scale = graph.constant("w.scale", graph.random.uniform(0.001, 0.01, 64).astype(np.float32))
    y = graph.node("MatMul", [x, graph.node("DequantizeLinear", ["w", weight_scale], "layer/WeightDQ", axis=1)], "layer/MatMul")
    graph.plan("layer", "linear")
    bias = graph.constant("layer.bias", graph.random.normal(size=64).astype(np.float32))
    return make_bundle(path, graph, graph.node("Add", [y, bias], "layer/Bias"), ["batch", 16, 64])


def asymmetric_conv(path: Path) -> Artifact:
    """Zero-points outside of Q/DQ, fp16 around: pad, cast, multiply, round, add z_t, clip, Q/DQ(1), conv, correct, multiply, bias, cast."""
    graph = Graph()
    half = graph.node("Sigmoid", [graph.node("Cast", ["sample"], "in/Cast", to=TensorProto.FLOAT16)], "in/Sigmoid")
    scale = graph.gathered("c.scale", ROWS, 4)
    zero = graph.gathered("c.zero_point", np.array([3, -5, 0, 100], np.float32), 4)
    pads = [graph.constant("c.pads", np.array([0, 0, 1, 1, 0, 0, 1, 1])), graph.constant("c.pad", np.float16(0))]
    x = graph.node("Cast", [graph.node("Pad", [half, *pads], "c/Pad")], "c/CastIn", to=TensorProto.FLOAT)
    x = graph.node("Mul", [x, graph.node("Reciprocal", [scale], "c/Inverse")], "c/Scale")
    x = graph.node("Add", [graph.node("Round", [x], "c/Round"), zero], "c/Shift")
    x = graph.node("Clip", [x, graph.constant("low", np.float32(-128)), graph.constant("high", np.float32(127))], "c/Clip")
    y = graph.node("Conv", [graph.unit_qdq(x, "c"), graph.weight("c", (32, 16, 3, 3), 0)], "c/Conv")
    graph.plan("c", "conv2d")
    sums = graph.constant("c.sums", graph.random.normal(size=(1, 32, 1, 1)).astype(np.float32))
    y = graph.node("Sub", [y, graph.node("Mul", [zero, sums], "c/Correction")], "c/Correct")
    y = graph.node("Cast", [graph.finish(y, "c", scale, (1, 32, 1, 1))], "c/CastOut", to=TensorProto.FLOAT16)
    return make_bundle(path, graph, graph.node("Cast", [y], "out/Cast", to=TensorProto.FLOAT), ["batch", 16, 8, 8])


def computed_scale(path: Path, op: str) -> Artifact:
    """A Conv or MatMul whose Q and DQ take a scale that is computed at run time from ``timestep``."""
    graph = Graph()
    rows = graph.node("Gather", [graph.constant("scale", ROWS), graph.row()], "layer/Gather")
    scale = graph.node("ReduceMax", [rows], "layer/Scale", keepdims=0)
    pair = [scale, graph.constant("zero", np.int8(0))]
    x = graph.node("DequantizeLinear", [graph.node("QuantizeLinear", ["sample", *pair], "layer/Q"), *pair], "layer/DQ")
    convolves = op == "Conv"
    weight = graph.weight("layer", (16, 16, 3, 3) if convolves else (64, 64), 0 if convolves else 1)
    y = graph.node(op, [x, weight], f"layer/{op}")
    graph.plan("layer", "conv2d" if convolves else "linear")
    return make_bundle(path, graph, y, ["batch", 16, 8, 8] if convolves else ["batch", 16, 64])


def zero_point(path: Path) -> Artifact:
    """A QuantizeLinear with a zero-point, which TensorRT's parser refuses."""
    graph = Graph()
    pair = [graph.constant("scale", np.float32(0.05)), graph.constant("zero", np.int8(3))]
    x = graph.node("DequantizeLinear", [graph.node("QuantizeLinear", ["sample", *pair], "layer/Q"), *pair], "layer/DQ")
    y = graph.node("MatMul", [x, graph.weight("layer", (64, 64), 1)], "layer/MatMul")
    y = graph.node("Mul", [y, graph.gathered("layer.scale", ROWS, 3)], "layer/Rescale")
    return make_bundle(path, graph, y, ["batch", 16, 64])


def many_weights(path: Path) -> Path:
    """A float MatMul whose weights take 400 MB: 1,024 values of a sample to 100,000."""
    graph = Graph()
    tokens = graph.node("Reshape", ["sample", graph.constant("tokens", np.array([0, 1024]))], "tokens")
    weights = graph.random.random((1024, 100_000), np.float32)
    onnx.save(graph.model(graph.node("MatMul", [tokens, graph.constant("weights", weights)], "product"), 2, ["batch", 16, 8, 8]), path)
    return path
