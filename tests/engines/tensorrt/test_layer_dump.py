"""The log's kernel list as text: spellings of both TensorRT families, and what must not be read as a complete list."""

from __future__ import annotations

from dq_deploy.engines.layer_report.kernels import LayerDump, Tensor
from dq_deploy.engines.tensorrt.layer_dump import parse_dump

HEAD = "[X] Parsing node: fc/MatMul [MatMul]\n[V] Total Weights Memory: 123 bytes\n[X] Layers:\n"
TAIL = "    \n    I/O Tensors:\n     Name: x, IOMode: Input\n[V] done\n"
RTX_GEMM = (
    "    Name: fc/MatMul_myl0_6, LayerType: gemm, Inputs: [ { Name: x_myl0, Dimensions: [-1,16], Strides: [16,1], StrideOrder: [1,0], "
    "Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ { Name: w, Dimensions: [16,32], Strides: [32,1], "
    "StrideOrder: [1,0], Datatype: Int8, Format: (Linear) Row major linear format }], Outputs: [ { Name: y, Dimensions: [-1,32], "
    "Strides: [32,1], StrideOrder: [1,0], Datatype: Float, Format: (Linear) Row major linear format }], TacticName: __myelin_CASK_STUB, "
    "StreamId: 0, Metadata: [ONNX Layer: fc/MatMul][ONNX Layer: fc/DQ[0]]\n"
)
ENTERPRISE_CONV = (
    "    Name: a/Conv + a/Relu, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, Dimensions: [1,64,8,8], "
    "Format/Datatype: Thirty-two wide channel vectorized row major Int8 format }], Outputs: [ { Name: y, Location: Device, "
    "Dimensions: [1,64,8,8], Format/Datatype: Half }], ParameterType: Convolution, Kernel: [3,3], OutMaps: 64, "
    'Weights: {"Type": "Int8", "Count": 36864}, Bias: {"Type": "Float", "Count": 64}, TacticName: sm80, TacticValue: 0x2, StreamId: 0, '
    "Metadata: [ONNX Layer: a/Conv]\x1e[ONNX Layer: a/Relu]\n"
)


def parsed(log: str) -> LayerDump:
    dump = parse_dump(log)
    assert dump is not None
    return dump


def test_rtx_line() -> None:
    dump = parsed(HEAD + RTX_GEMM + TAIL)
    assert dump.weights_bytes == 123
    assert dump.operators == {"fc/MatMul": "MatMul"}
    (kernel,) = dump.kernels
    assert (kernel.name, kernel.type) == ("fc/MatMul_myl0_6", "gemm")
    assert kernel.inputs == (Tensor(dtype="int8", shape=(-1, 16)),)
    assert kernel.constants == (Tensor(dtype="int8", shape=(16, 32)),)
    assert kernel.outputs == (Tensor(dtype="fp32", shape=(-1, 32)),)
    assert kernel.nodes == ("fc/MatMul", "fc/DQ[0]")


def test_enterprise_line() -> None:
    (kernel,) = parsed(HEAD + ENTERPRISE_CONV + TAIL).kernels
    assert kernel.name == "a/Conv + a/Relu"
    assert kernel.inputs == (Tensor(dtype="int8", shape=(1, 64, 8, 8)),)
    assert kernel.constants == (Tensor(dtype="int8", shape=(36864,)),)
    assert kernel.outputs == (Tensor(dtype="fp16", shape=(1, 64, 8, 8)),)
    assert kernel.nodes == ("a/Conv", "a/Relu")


def test_last_list_counts() -> None:
    dump = parsed(HEAD + RTX_GEMM + TAIL + HEAD + ENTERPRISE_CONV + TAIL)
    assert [kernel.type for kernel in dump.kernels] == ["CaskConvolution"]


def test_colours_are_ignored() -> None:
    coloured = "\n".join(f"\x1b[38;5;3m{line}\x1b[0m" for line in (HEAD + RTX_GEMM + TAIL).splitlines())
    assert parsed(coloured) == parsed(HEAD + RTX_GEMM + TAIL)


def test_other_lines_with_layers_are_no_list() -> None:
    assert parse_dump("[X] After reformat layers: 1 layers\n[V] Total Weights Memory: 1 bytes\n") is None


def test_build_that_ended_early_has_no_list() -> None:
    assert parse_dump("[X] Parsing node: fc/MatMul [MatMul]\n") is None
    assert parse_dump("[X] Layers:\n" + RTX_GEMM) is None  # no weights' size


def test_unreadable_line_voids_the_list() -> None:
    assert parse_dump(HEAD + RTX_GEMM + "    Name: something of a later version\n" + TAIL) is None
