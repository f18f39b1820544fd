"""A report beside the float build's: layers matched, reasons given, totals right."""

from __future__ import annotations

import pytest

from dq_deploy.artifacts.details import FloatLayer
from dq_deploy.engines.layer_report import LayerReport, build_report
from dq_deploy.engines.layer_report.compare import compare
from dq_deploy.engines.layer_report.kernels import LayerDump
from dq_deploy.errors import UsageError
from dq_deploy.report.layer_plot import layer_plot
from dq_deploy.report.svg import standalone
from tests.engines.test_layer_report import kernel, planned_layer

KERNELS = [
    kernel("q", "gemm", "int8 | int8 | fp32", "attn.q/MatMul"),
    kernel("h", "correlation", "int8 | int8 | fp32", "conv#h/Conv"),
    kernel("s", "correlation", "fp16 | fp16 | fp16", "conv#skip/Conv"),
    kernel("__myl_CastMulFc_0", "runtime_fusion", "int8 | int8 | fp16", "cast/MatMul"),
    kernel("four", "gemm", "fp16 | int4 | fp16", "four/MatMul"),
    kernel("first", "correlation", "fp16 | fp16 | fp16", "first/Conv"),
    kernel("free", "gemm", "fp16 | fp16 | fp16", "free/MatMul"),
]
OPERATORS = {name: "Conv" if name.endswith("Conv") else "MatMul" for kernel in KERNELS for name in kernel.nodes} | {"lost/MatMul": "MatMul"}
PLANNED = [planned_layer(n, "x") for n in ("attn.q", "conv#h", "conv#skip", "cast", "four", "lost", "absent")]


def quantized(**options: bool) -> LayerReport:
    dump = LayerDump(kernels=tuple(KERNELS), operators=OPERATORS, weights_bytes=25)
    left = [FloatLayer(name="first", op="conv2d", macs=8, reason="it reads the input")]
    return build_report(dump, backend="tensorrt-rtx", version="1", compute_capability="8.9", planned=PLANNED, float_layers=left, **options)


def baseline(capability: str = "8.9") -> LayerReport:
    kernels = (
        kernel("c", "correlation", "fp32 | fp32 | fp32", "conv/Conv"),
        kernel("q", "gemm", "fp32 | fp32 | fp32", "attn.q/MatMul"),
    )
    dump = LayerDump(kernels=kernels, operators={"conv/Conv": "Conv", "attn.q/MatMul": "MatMul"}, weights_bytes=100)
    return build_report(dump, backend="tensorrt-rtx", version="1", compute_capability=capability)


def test_every_product_that_is_not_int8_has_its_reason() -> None:
    report = quantized()
    assert {c.node: c.reason for c in report.contractions} == {
        "attn.q/MatMul": None,
        "conv#h/Conv": None,
        "conv#skip/Conv": "the kernel reads inputs fp16, constants fp16",
        "cast/MatMul": "the fused kernel casts its operands before it multiplies them",
        "four/MatMul": "the kernel unpacks INT4 weights and multiplies in fp16",
        "first/Conv": "left in float: it reads the input",
        "free/MatMul": "not planned for quantization",
        "lost/MatMul": "no kernel carries its node",
    }
    assert report.summary()["reasons"]["absent"] == "the graph has no product of that name"
    assert report.summary()["reasons"]["cast"] == "the fused kernel casts its operands before it multiplies them"
    assert report.summary()["float_products"] == {
        "first/Conv": "left in float: it reads the input", "free/MatMul": "not planned for quantization"
    }  # fmt: skip
    assert LayerReport.model_validate_json(report.to_json()) == report


def test_int8_kernels_that_were_turned_off_are_the_reason() -> None:
    assert {c.reason for c in quantized(integer=False).contractions if c.node == "conv#skip/Conv"} == {"INT8 kernels are turned off"}


def test_halves_are_compared_with_the_whole_layer_and_float_comes_first() -> None:
    (found,) = compare([quantized()], [baseline()])
    layers = {layer.name: layer for layer in found.layers}
    assert (layers["conv#h"].precision, layers["conv#h"].baseline_precision, layers["conv#h"].macs) == ("int8", "fp32", 8)
    assert (layers["conv#skip"].precision, layers["conv#skip"].baseline_precision) == ("fp16", "fp32")
    assert (layers["first"].baseline_precision, layers["first"].macs) == (None, None)
    assert [layer.precision == "int8" for layer in found.layers] == [False] * 6 + [True] * 2
    assert found.weights_ratio == 0.25
    assert found.baseline is not None
    assert (found.totals.kernels, found.baseline.kernels) == (7, 2)
    assert found.totals.kernels_by_type == {"correlation": 3, "gemm": 3, "runtime_fusion": 1}
    assert found.totals.conv_by_precision == {"int8": 1, "fp16": 2}
    assert found.to_json()["weights_ratio"] == 0.25


def test_without_a_baseline() -> None:
    (found,) = compare([quantized()])
    assert found.baseline is None
    assert found.weights_ratio is None


def test_baseline_for_another_device_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the baseline was not built for 8\.9, only for 12\.0"):
        compare([quantized()], [baseline("12.0")])


def test_picture_stands_alone() -> None:
    (found,) = compare([quantized()], [baseline()])
    svg = standalone(layer_plot(found)).decode()
    assert svg.startswith("<?xml")
    assert "var(--" not in svg
    assert "quantized: 2 int8, 5 fp16, 1 not found, 7 kernels; baseline: 2 fp32, 2 kernels" in svg
    assert "not executed" in svg
