"""From kernels to the report, on hand-made kernels: which kernel runs a layer, what counts as INT8, what is missing."""

from __future__ import annotations

from dq_deploy.engines.layer_dump import Kernel, LayerDump, Tensor
from dq_deploy.engines.layer_report import LayerReport, build_report, kernel_rows, layer_rows


def kernel(name: str, kind: str, operands: str, nodes: str) -> Kernel:
    """Operands as "inputs | constants | outputs", each a list of dtypes; nodes separated by blanks."""
    sides = [tuple(Tensor(dtype=dtype, shape=(4,)) for dtype in side.split()) for side in operands.split("|")]
    return Kernel(name=name, type=kind, inputs=sides[0], constants=sides[1], outputs=sides[2], nodes=tuple(nodes.split()))


def report(kernels: list[Kernel], operators: dict[str, str], *planned: str, backend: str = "tensorrt-rtx") -> LayerReport:
    dump = LayerDump(kernels=tuple(kernels), operators=operators, weights_bytes=10)
    layers = [{"name": name, "op": "linear", "macs": 8} for name in planned]
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
    assert [layer.name for layer in result.not_int8()] == ["a"]


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
    assert layer_rows(result)[0] == ("b", "linear", "not found", "")


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
