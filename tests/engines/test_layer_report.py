"""From kernels to the report, on hand-made kernels: which kernel runs a layer, what counts as INT8, what is missing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dq_deploy.artifacts.details import LoweredLayer
from dq_deploy.engines.layer_report import LayerReport, build_report, kernel_rows, undocumented
from dq_deploy.engines.layer_report.kernels import Kernel, LayerDump, Tensor


def kernel(name: str, kind: str, operands: str, nodes: str) -> Kernel:
    """Operands as "inputs | constants | outputs", each a list of dtypes; nodes separated by blanks."""
    sides = [tuple(Tensor(dtype=dtype, shape=(4,)) for dtype in side.split()) for side in operands.split("|")]
    return Kernel(name=name, type=kind, inputs=sides[0], constants=sides[1], outputs=sides[2], nodes=tuple(nodes.split()))


def planned_layer(name: str, op: str = "linear", macs: int = 8, **entry: Any) -> LoweredLayer:
    """A layer as a bundle's manifest has it."""
    return LoweredLayer(**{"name": name, "op": op, "macs": macs, "activation_bits": 8, "quantizers": [], "output": "y", **entry})


def report(kernels: list[Kernel], operators: dict[str, str], *planned: str, backend: str = "tensorrt-rtx") -> LayerReport:
    dump = LayerDump(kernels=tuple(kernels), operators=operators, weights_bytes=10)
    layers = [planned_layer(name) for name in planned]
    return build_report(dump, backend=backend, version="1.7", compute_capability="8.9", planned=layers)


GEMM = kernel("a/MatMul_0", "gemm", "int8 | int8 fp32 | fp32", "a/MatMul a/DQ")
EPILOGUE = kernel("__myl_MulAdd_1", "kgen", "fp32 fp32 | fp32 | fp32", "a/MatMul a/DQ a/Bias")


def test_the_multiplying_kernel_runs_the_layer_not_its_epilogue() -> None:
    result = report([EPILOGUE, GEMM], {"a/MatMul": "MatMul", "a/Bias": "Add"}, "a")
    assert [layer.precision for layer in result.layers] == ["int8"]
    assert result.layers[0].kernels == ("a/MatMul_0",)
    assert result.int8_share("gemm") == 1.0
    assert result.int8_share("conv") is None


def test_int8_weights_alone_are_a_float_product() -> None:
    result = report([kernel("__myl_CastMulFc_0", "runtime_fusion", "fp16 | int8 | fp16", "a/MatMul")], {"a/MatMul": "MatMul"}, "a")
    assert result.layers[0].precision == "fp16"
    assert [layer.name for layer in result.not_as_planned()] == ["a"]


def test_fusion_that_casts_first_is_not_int8() -> None:
    cast = kernel("__myl_CastMulFc_0", "runtime_fusion", "int8 | int8 | fp32", "a/MatMul")
    assert report([cast], {"a/MatMul": "MatMul"}, "a").layers[0].precision == "fp32"


def test_pointwise_kernel_is_never_int8() -> None:
    pointwise = kernel("__myl_MulAdd_0", "kgen", "int8 int8 |  | fp32", "a/MatMul")
    assert report([pointwise], {"a/MatMul": "MatMul"}, "a").layers[0].precision == "fp32"


def test_merged_gemm_counts_for_each_of_its_layers() -> None:
    merged = kernel("q/MatMul+k/MatMul_0", "gemm", "int8 | int8 | fp32", "q/MatMul k/MatMul x/DQ")
    result = report([merged], {"q/MatMul": "MatMul", "k/MatMul": "MatMul"}, "q", "k")
    assert [layer.precision for layer in result.layers] == ["int8", "int8"]
    assert result.summary()["gemm_kernels"] == 1
    assert result.summary()["gemm_by_precision"] == {"int8": 2}


def test_layers_merged_by_the_exporter_are_found() -> None:
    merged = kernel("0", "gemm", "int8 | int8 | fp32", "attn.q+attn.k/MatMul")
    assert not report([merged], {"attn.q+attn.k/MatMul": "MatMul"}, "attn.q", "attn.k").not_found()


def test_layer_of_two_products_is_int8_when_both_are() -> None:
    other = kernel("a/Conv2", "correlation", "fp16 | fp16 | fp16", "a/Second")
    result = report([GEMM, other], {"a/MatMul": "MatMul", "a/Second": "Conv"}, "a")
    assert result.layers[0].precision == "fp16"


def test_a_name_that_is_the_beginning_of_another_is_not_found() -> None:
    result = report([kernel("0", "gemm", "int8 | int8 | fp32", "down.0/MatMul")], {"down.0/MatMul": "MatMul"}, "down", "down.0")
    assert [layer.name for layer in result.not_found()] == ["down"]


def test_planned_layer_in_no_kernel_is_named() -> None:
    result = report([GEMM], {"a/MatMul": "MatMul", "b/MatMul": "MatMul"}, "a", "b", "c")
    assert [layer.name for layer in result.not_found()] == ["b", "c"]
    assert result.summary()["planned_found"] == 1
    assert result.by_precision("gemm") == {"int8": 1, "not found": 1}


def test_rows_are_sorted_by_count() -> None:
    waiting = kernel("wait_0", "wait", "||", "")
    result = report([EPILOGUE, waiting, GEMM, EPILOGUE], {})
    assert kernel_rows(result) == [("kgen", "fp32 -> fp32", 2), ("gemm", "int8", 1)]
    assert result.summary()["kernels"] == 3


def test_statement_says_what_was_not_done() -> None:
    assert report([], {}).summary()["statement"] == "chosen ahead of time by the compiler; not executed on this machine"
    assert "GPU" in report([], {}, backend="tensorrt").statement


def test_json_round_trip() -> None:
    result = report([GEMM, EPILOGUE], {"a/MatMul": "MatMul"}, "a")
    assert LayerReport.model_validate_json(result.to_json()) == result


def judged(number_format: str, operands: str, *, stated: str | None = None, **layer: str) -> LayerReport:
    """A MatMul that is planned in a format, in a kernel with these operands."""
    one = kernel("a", "gemm", operands, "a/MatMul").model_copy(update={"precision": stated})
    dump = LayerDump(kernels=(one,), operators={"a/MatMul": "MatMul"}, weights_bytes=10)
    planned = [planned_layer("a", **({"format": number_format} if number_format else {}), **layer)]
    return build_report(dump, backend="tensorrt-rtx", version="1.7", compute_capability="8.9", planned=planned, dtype="fp16")


@pytest.mark.parametrize(("planned", "operands", "stated", "runs_in"), [
    ("fp8", "fp8 | fp8 fp32 | fp32", None, "fp8"),
    ("fp8", "fp16 | fp8 fp32 | fp32", None, "fp16"),  # FP8 weights alone
    ("fp8", "int8 | int8 fp32 | fp32", None, "int8"),  # not what was planned, however fast
    ("fp4", "fp4 fp8 | fp4 fp8 | fp16", None, "fp4"),
    ("int8", "int8 | int4 fp32 | fp32", None, "int8"),
    ("int8", "fp16 | fp16 | fp16", None, "fp16"),
    ("toy8", "fp32 | fp32 | fp32", "toy8", "toy8"),  # a format that only its engine knows
    ("toy8", "fp32 | fp32 | fp32", None, "fp32"),
])  # fmt: skip
def test_a_layer_is_judged_by_the_format_that_was_planned(planned: str, operands: str, stated: str | None, runs_in: str) -> None:
    result = judged(planned, operands, stated=stated)
    (layer,) = result.layers
    assert (layer.planned_format, layer.precision, layer.reason is None) == (planned, runs_in, planned == runs_in)
    assert (result.contractions[0].planned_format, result.contractions[0].reason) == (planned, layer.reason)
    summary = result.summary()
    assert summary["planned_formats"] == {planned: 1}
    assert summary["as_planned"] == int(planned == runs_in)
    assert summary["not_as_planned"] == ({} if planned == runs_in else {"a": planned})
    assert (summary["planned_int8"], summary["not_int8"]) == (int(runs_in == "int8"), [] if runs_in == "int8" else ["a"])


def test_where_weights_alone_are_quantized_a_float_product_is_the_plan() -> None:
    result = judged("", "fp16 | int4 fp16 | fp16", input="silu")
    assert result.layers == ()
    (product,) = result.contractions
    assert (product.planned_format, product.precision, product.reason) == ("fp16", "fp16", "its weights alone are quantized")


def test_a_report_from_before_formats_were_kept_is_of_int8() -> None:
    text = report([GEMM], {"a/MatMul": "MatMul"}, "a").to_json()
    old = "\n".join(line for line in text.splitlines() if "planned_format" not in line)
    read = LayerReport.model_validate_json(re.sub(r",(\s*})", r"\1", old))
    assert read.layers[0].planned_format == "int8"
    assert read.as_planned() == list(read.layers)


def test_what_a_vendor_does_not_document_is_said_once_for_all_devices() -> None:
    both = [judged("int8", "int8 | int8 | fp32"), judged("int8", "int8 | int8 | fp32").model_copy(update={"compute_capability": "12.0"})]
    (sentence,) = undocumented(both)
    assert sentence.startswith("TensorRT-RTX does not document that it computes INT8 matrix products of quantized activations on compute")
    assert "compute capability 8.9 and compute capability 12.0 (it documents INT8 and INT4 for weights alone): look" in sentence
    assert undocumented([judged("fp8", "fp8 | fp8 | fp32")]) == []
