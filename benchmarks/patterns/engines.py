"""What each engine does with one graph: the real compilers, nothing else.

TensorRT-RTX   builds in a child process for compute capability 8.9 (FP4: 12.0), with no GPU; what it chose is read from its kernel list
OpenVINO       compiles for the CPU; the precision of every product is read from the compiled model
ONNX Runtime   optimizes for the CPU with the session options that dq_deploy sets; its products are read from the optimized graph
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import onnx
from pydantic import BaseModel, ConfigDict

from dq_deploy.engines.build.process import BuilderCrash, run_child
from dq_deploy.engines.build.request import BuildRequest, ShapeRange
from dq_deploy.engines.layer_report import LayerReport, build_report, kernel_rows
from dq_deploy.engines.onnxruntime.runner import optimized_operators
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.engines.tensorrt.layer_dump import parse_dump
from dq_deploy.errors import ArtifactError

# Products that ONNX Runtime computes from integers, those that unpack narrow weights into a float product, and what is left.
_INTEGER_OPS = (
    "QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeMatMul", "ConvInteger",
)  # fmt: skip
_UNPACKING_OPS = ("MatMulNBits",)
_FLOAT_OPS = r"Conv|MatMul|Gemm"
_REASON_LENGTH = 160
# Our own words, paths and line numbers of the engines' sources, and what follows every Myelin error.
_NOISE = (
    r"^the builder refuses the graph: ", r"^onnxruntime cannot load \S+: ", r"^OpenVINO \S+ cannot load \S+: ",
    r"\[ONNXRuntimeError\] : \d+ : \w+ : ", r"Load model from \S+ failed:",
    r"^\S+/model\.onnx (?=multiplies)", r"IBuilder::buildSerializedNetwork: Error Code \d+: ",
    r"\[[\w.]+\.(h|cpp):\d+: \w+\] ?", r"In compileGraph at \S+", r"Invalid Engine\..*$", r"\S+\.(cpp|h|cc):\d+ ?:?",
    r"\w[\w:]*&? onnxruntime::[\w:]+\([^)]*\) ", r"Please set kENABLE_UINT8.*$", r"MyelinCheckException: ",
)  # fmt: skip

Outcome = Literal["int8", "fp8", "fp4", "int4", "float", "refused", "crash"]
Capability = tuple[int, int]
COMPUTE_CAPABILITY: Capability = (8, 9)


_QUANTIZED: tuple[Outcome, ...] = ("int8", "fp8", "fp4")


class Behaviour(BaseModel):
    """What an engine did: ``outcome`` is int8, fp8 or fp4 when every product multiplies such.

    It is int4 when one unpacks INT4 weights inside itself.
    ``detail`` says what was seen: kernels, operators, or the engine's own words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    outcome: Outcome
    detail: str


def tensorrt_rtx(model: onnx.ModelProto, capability: Capability = COMPUTE_CAPABILITY) -> Behaviour:
    """Build ahead of time, in a child process that may crash. Raises what ``run_child`` raises for anything but the graph's fault."""
    with tempfile.TemporaryDirectory(prefix="dq-deploy-pattern-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        request = BuildRequest(
            backend="tensorrt-rtx", onnx=str(folder / "model.onnx"), plan=str(folder / "plan"), result=str(folder / "result.json"),
            compute_capability=capability, profiles=[_profile(model)],
        )  # fmt: skip
        try:
            build = run_child(request, folder, timeout_s=300)
        except BuilderCrash as error:
            return Behaviour(outcome="crash", detail=error.signal)
        except ArtifactError as error:
            return Behaviour(outcome="refused", detail=_reason(error.message))
    dump = parse_dump(build.log)
    assert dump is not None, "TensorRT-RTX printed no kernel list"
    return _kernels(
        build_report(dump, backend="tensorrt-rtx", version=build.result.version, compute_capability="{}.{}".format(*capability))
    )


def _profile(model: onnx.ModelProto) -> dict[str, ShapeRange]:
    shapes = {v.name: [d.dim_value or None for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return {name: tuple(tuple(d or batch for d in shape) for batch in (1, 2, 4)) for name, shape in shapes.items()}  # type: ignore[misc]


def _kernels(report: LayerReport) -> Behaviour:
    precisions = report.by_precision("conv") | report.by_precision("gemm")
    int4 = any(tensor.dtype == "int4" for kernel in report.kernels for tensor in kernel.constants)
    count = sum(rows for _, _, rows in kernel_rows(report))
    products = len({c.kernel for c in report.contractions})
    detail = f"{products} of {count} kernels multiply in {', '.join(sorted(precisions))}" + ("; weights INT4 in memory" if int4 else "")
    for outcome in _QUANTIZED:
        if set(precisions) == {outcome}:
            return Behaviour(outcome=outcome, detail=detail)
    return Behaviour(outcome="int4" if int4 else "float", detail=detail)


def openvino(model: onnx.ModelProto, capability: Capability = COMPUTE_CAPABILITY) -> Behaviour:  # noqa: ARG001  # of a GPU
    """Compile for the CPU, and read the compiled model."""
    with _file(model) as file:
        try:
            products = OpenVinoRunner(file, threads=1, integer=True).products()
        except ArtifactError as error:
            return Behaviour(outcome="refused", detail=_reason(error.message))
    precisions = sorted({precision for _, precision in products})
    return Behaviour(outcome=_outcome(precisions), detail=_counted(f"{op} {precision}" for op, precision in products))


def onnxruntime(model: onnx.ModelProto, capability: Capability = COMPUTE_CAPABILITY) -> Behaviour:  # noqa: ARG001  # of a GPU
    """Open a session, and read the graph that it optimized."""
    with _file(model) as file:
        try:
            operators = optimized_operators(file, threads=1)
        except ArtifactError as error:
            return Behaviour(outcome="refused", detail=_reason(error.message))
    products = [op for op in operators if op in _INTEGER_OPS or op in _UNPACKING_OPS or re.search(_FLOAT_OPS, op)]
    precisions = ["int8" if op in _INTEGER_OPS else "int4" if op in _UNPACKING_OPS else "float" for op in products]
    return Behaviour(outcome=_outcome(precisions), detail=_counted(products))


@contextmanager
def _file(model: onnx.ModelProto) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dq-deploy-pattern-") as name:
        file = Path(name) / "model.onnx"
        file.write_bytes(model.SerializeToString())
        yield file


def _outcome(precisions: Sequence[str]) -> Outcome:
    if set(precisions) == {"int8"}:
        return "int8"
    return "int4" if precisions and set(precisions) <= {"int8", "int4"} else "float"


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{count} × {name}" if count > 1 else name for name, count in Counter(names).items()) or "no product"


def _reason(message: str) -> str:
    """An engine's words without our own before them, source files and stacks, and short enough for a table."""
    text = " ".join(message.split())
    for pattern in _NOISE:
        text = re.sub(pattern, "", text)
    return text.strip(" ;:")[:_REASON_LENGTH]


ENGINES: dict[str, Callable[[onnx.ModelProto, Capability], Behaviour]] = {
    "TensorRT-RTX": tensorrt_rtx,
    "OpenVINO": openvino,
    "ONNX Runtime": onnxruntime,
}
