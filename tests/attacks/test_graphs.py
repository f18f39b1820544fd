"""Graphs that are none, are not model, or name bytes that are not there."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dq_deploy.artifacts import Artifact
from dq_deploy.artifacts.reading import check_onnx, onnx_files
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.errors import ArtifactError, DqDeployError
from dq_deploy.exporters.lint import lint
from tests.attacks.hostile import change_graph, copy_of, external_tensor, relu, set_entry
from tests.command_line import Cli, assert_refused
from tests.tiny import resealed

SIZES = {
    ("offset", "-1"): "has the offset '-1'",
    ("offset", "ten"): "has the offset 'ten'",
    ("offset", "1e3"): "has the offset '1e3'",
    ("offset", " 8"): "has the offset ' 8'",
    ("offset", "٣"): "has the offset '٣'",
    ("offset", "9" * 40): "has the offset '9999",
    ("offset", str(2**50)): "are needed",
    ("offset", str(2**63)): "are needed",
    ("length", "-4"): "has the length '-4'",
    ("length", "0"): "gives 0 bytes for a tensor that takes",
    ("length", str(2**50)): "gives 1125899906842624 bytes for a tensor that takes",
    ("basepath", "/etc"): "has the unknown key(s) basepath",
    ("surprise", "1"): "has the unknown key(s) surprise",
}


@pytest.mark.parametrize("change", SIZES, ids=lambda pair: f"{pair[0]}={pair[1][:8]}")
def test_external_data(cli: Cli, outside_bundle: Artifact, nothing_runs: None, tmp_path: Path, change: tuple[str, str]) -> None:
    bundle = change_graph(copy_of(outside_bundle, tmp_path / "bundle"), set_entry(*change))
    for arguments in (("bench", bundle), ("build-engine", bundle, "-o", tmp_path / "e", "--backend", "tensorrt-rtx")):
        assert_refused(cli(*arguments), 3, "names data that must not be read", SIZES[change], "hint: ")


def twice(model: onnx.ModelProto) -> None:
    external_tensor(model).external_data.add(key="location", value="model.onnx.data")


def negative(model: onnx.ModelProto) -> None:
    external_tensor(model).dims[0] = -5


def enormous(model: onnx.ModelProto) -> None:
    tensor = external_tensor(model)
    tensor.dims[:] = [2**62, 2**62]
    del tensor.external_data[1:]


def another_type(model: onnx.ModelProto) -> None:
    external_tensor(model).data_type = 99


@pytest.mark.parametrize("change", [twice, negative, enormous, another_type], ids=lambda change: change.__name__)
def test_external_tensors(cli: Cli, outside_bundle: Artifact, nothing_runs: None, tmp_path: Path, change: Callable[..., None]) -> None:
    bundle = change_graph(copy_of(outside_bundle, tmp_path / "bundle"), change)
    assert_refused(cli("bench", bundle), 3, "names data that must not be read", "hint: ")


def test_data_hidden_in_a_subgraph_is_found(outside: Path, tmp_path: Path) -> None:
    hidden = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="../secret")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["v"], value=hidden)], "inner", [], [helper.make_tensor_value_info("v", 1, [4])]
    )
    condition = numpy_helper.from_array(np.array(True), "condition")
    nodes = [
        helper.make_node("If", ["condition"], ["v"], then_branch=inner, else_branch=inner),
        helper.make_node("Add", ["sample", "v"], ["out_sample"]),
    ]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(relu(nodes=nodes, tensors=[condition]).SerializeToString())
    with pytest.raises(ArtifactError, match=r"'../secret' leaves the folder \(tensor w\)"):
        check_onnx(tmp_path / "model" / "model.onnx")


@pytest.mark.parametrize("size", [0, 1, 100])
def test_missing_short_and_longer_data(cli: Cli, outside_bundle: Artifact, nothing_runs: None, tmp_path: Path, size: int) -> None:
    bundle = copy_of(outside_bundle, tmp_path / "bundle")
    data = bundle / "model.onnx.data"
    os.truncate(data, size)
    assert_refused(cli("bench", bundle), 3, f"has {size} bytes, not ", "hint: ")
    resealed(bundle)
    assert_refused(cli("bench", bundle), 3, f"'model.onnx.data' has {size} bytes, and those from ", "hint: ")
    data.unlink()
    assert_refused(cli("bench", bundle), 3, "'model.onnx.data' is missing", "hint: ")


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


NOT_A_GRAPH = {
    "empty": b"",
    "one byte": b"\x08",
    "text": b"not a graph at all",
    "noise": noise(4096),
    "an engine": b"ftrt" + noise(100),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
    "zeros": bytes(1000),
    "a length of an exabyte": b"\x3a\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(50),
    "groups that never end": b"\x3b" * 20_000,
    "messages in messages": b"\x3a\x7f" * 200,
    "no nodes": helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString(),
}


@pytest.mark.parametrize("kind", NOT_A_GRAPH)
def test_what_is_no_graph(cli: Cli, outside_bundle: Artifact, nothing_runs: None, tmp_path: Path, kind: str) -> None:
    bundle = copy_of(outside_bundle, tmp_path / "bundle")
    (bundle / "model.onnx").write_bytes(NOT_A_GRAPH[kind])
    resealed(bundle)
    for arguments in (
        ("bench", bundle),
        ("build-engine", bundle, "-o", tmp_path / "e", "--backend", "openvino"),
        ("check", bundle, "--lint"),
    ):
        assert_refused(cli(*arguments), 3, "is not an ONNX graph")


def test_every_truncation_of_a_graph_is_refused_or_judged(outside_bundle: Artifact, tmp_path: Path) -> None:
    """A prefix of a protobuf can be one: then it is a graph with less in it, which the hash of a manifest finds."""
    content = outside_bundle.file("model.onnx").read_bytes()
    file = tmp_path / "model.onnx"
    (tmp_path / "model.onnx.data").write_bytes(outside_bundle.file("model.onnx.data").read_bytes())
    refused = 0
    for size in range(0, len(content), max(1, len(content) // 300)):
        file.write_bytes(content[:size])
        try:
            assert not lint(file)
        except ArtifactError:
            refused += 1
    assert refused > 250


def test_more_than_a_protobuf_can_hold(outside_bundle: Artifact, nothing_runs: None, tmp_path: Path, cli: Cli) -> None:
    bundle = copy_of(outside_bundle, tmp_path / "bundle")
    os.truncate(bundle / "model.onnx", onnx_files.PROTOBUF_LIMIT + 1)  # a sparse file: 2 GiB that take no disk
    with pytest.raises(ArtifactError, match=r"has 2147483648 bytes, and at most 2147483647 are read\nexport it again"):
        check_onnx(bundle / "model.onnx")
    assert_refused(cli("bench", bundle), 3, "has 2147483648 bytes, not", "hint: ")


def node(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"{op}-{outputs[0]}", **attributes)


INVALID = {
    "a value made twice": relu(nodes=[node("Relu", ["sample"], ["out_sample"]), node("Neg", ["sample"], ["out_sample"])]),
    "two nodes in a circle": relu(
        nodes=[node("Add", ["sample", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["out_sample"])]
    ),
    "a node that reads itself": relu(nodes=[node("Add", ["sample", "out_sample"], ["out_sample"])]),
    "an input from nowhere": relu(nodes=[node("Add", ["sample", "nowhere"], ["out_sample"])]),
    "an output from nowhere": relu(nodes=[node("Relu", ["sample"], ["elsewhere"])]),
    "no opset": relu(opset_imports=[]),
    "an opset of another domain alone": relu(opset_imports=[helper.make_opsetid("com.example", 1)]),
    "an opset from the future": relu(opset_imports=[helper.make_opsetid("", 999)]),
    "an IR version from the future": relu(ir_version=999),
    "an operator that there is not": relu(nodes=[node("Telepathy", ["sample"], ["out_sample"])]),
    "an operator of a plugin": relu(nodes=[helper.make_node("Run", ["sample"], ["out_sample"], domain="com.example.shell")]),
    "an attribute of another type": relu(nodes=[node("Softmax", ["sample"], ["out_sample"], axis="rm -rf")]),
    "an initializer of fewer bytes than its shape": relu(
        nodes=[node("Add", ["sample", "w"], ["out_sample"])],
        tensors=[TensorProto(name="w", data_type=1, dims=[1 << 40], raw_data=bytes(16))],
    ),
    "an initializer of a negative size": relu(
        nodes=[node("Add", ["sample", "w"], ["out_sample"])], tensors=[TensorProto(name="w", data_type=1, dims=[-4], raw_data=bytes(16))]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", INVALID)
@pytest.mark.parametrize("runner", [OnnxRuntimeRunner, OpenVinoRunner], ids=["onnxruntime", "openvino"])
def test_an_invalid_model_ends_in_words(tmp_path: Path, kind: str, runner: type) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(INVALID[kind].SerializeToString())
    try:
        assert not lint(file), "the lint must have an error for it"
    except ArtifactError as error:
        assert "is not an ONNX graph" in error.message or "is newer than onnx" in error.message  # noqa: PT017  either of two forms
    with pytest.raises(DqDeployError, match=r"model\.onnx") as caught:
        runner(file)
    assert caught.value.exit_code == 3
    assert len(caught.value.message.splitlines()) == 1
