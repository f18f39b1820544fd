"""`dq-deploy check`: the accuracy gate and lint."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from onnx import ModelProto, numpy_helper

from dq_deploy.artifacts import open_artifact
from tests.command_line import HEAVY, Cli, assert_refused, process
from tests.flow import Flow, altered, altered_manifest, snapshot


def test_the_accuracy_gate(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    layer = "down_blocks.0.resnets.0.conv1"

    def drop_bias(model: ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == f"{layer}.bias")
        tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))

    bundle = altered(flow.bundle("qdq"), tmp_path / "b", drop_bias)
    ended = cli("check", bundle.path, "--checkpoint", flow.checkpoint, "--format", "json")
    assert ended.code == 6
    verdict = json.loads(ended.out)
    assert not verdict["passed"]
    assert verdict["worst_layer"] == layer
    assert ended.err.count("error: ") == 1
    assert layer in ended.err
    table = cli("check", bundle.path, "--checkpoint", flow.checkpoint)
    assert table.code == 6
    assert "FAILED" in table.out
    assert f"worst layer {layer}" in table.out


def test_what_each_step_costs_the_final_sample_is_said(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    """As the checkpoint's manifest has it; of a checkpoint from before it was measured nothing is."""
    checkpoint = open_artifact(flow.checkpoint, "checkpoint")
    details = checkpoint.manifest.details
    ended = cli("check", flow.bundles["qdq"], "--checkpoint", flow.checkpoint, "--format", "json")
    verdict = json.loads(ended.out)
    assert ended.code == 0, ended.err
    assert verdict["final_error"] == details["final_error"]
    assert verdict["clipped"] == details["clipped"]
    table = cli("check", flow.bundles["qdq"], "--checkpoint", flow.checkpoint).out
    found = details["final_error"]
    assert f"cost to the final sample (seeds: 1, in PyTorch): {found['all_db']:.2f} dB with every step quantized" in table
    assert f"it computes what its checkpoint does. Of that, the final sample has {found['all_db']:.1f} dB of SNR" in table
    for step in found["steps"]:
        assert f"{step['share']:.1%}" in table
        assert f"{step['only_db']:.2f}" in table
    assert "clipped on held-out samples: " in table
    seen = cli("inspect", flow.checkpoint).out
    assert f"{found['all_db']:.1f} dB (1 seed); timestep " in seen
    assert "at the most" in seen
    before = {name: value for name, value in details.items() if name not in ("final_error", "clipped")}
    older = altered_manifest(checkpoint, tmp_path / "older", details=before)
    assert "final sample" not in cli("inspect", older.path).out


def test_other_engines_are_judged_and_said(cli: Cli, flow: Flow) -> None:
    ended = cli("check", flow.bundles["qdq"], "--checkpoint", flow.checkpoint, "--engine", "openvino")
    assert ended.code == 0, ended.err
    assert "on openvino against" in ended.out
    assert "openvino computes what is not INT8 in f32, and quantized layers" in ended.out
    assert_refused(cli("check", flow.bundles["qdq"], "--lint", "--engine", "openvino"), 2, "--checkpoint")


def test_lint_passes_what_was_exported(cli: Cli, flow: Flow) -> None:
    for name in ("qdq", "qdq-fp16", "float"):
        ended = cli("check", flow.bundles[name], "--lint")
        assert ended.code == 0, ended.out
        assert ended.out == "lint for qdq: passed, 0 errors, 0 warnings\n"
    ended = cli("check", flow.bundles["onnxruntime"], "--lint", "--format", "json")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert found["passed"]
    assert found["errors"] == 0
    assert found["findings"] == []


def computed_scale(model: ModelProto) -> None:
    """Let every activation's Q/DQ pair take a scale that is computed."""
    scale = next(n for n in model.graph.node if n.op_type == "Gather" and n.name.endswith(".scale/Gather")).output[0]
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] == "dq_deploy.one":
            node.input[1] = scale


def test_lint_names_every_offender_and_ends_with_exit_code_3(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    bundle = altered(flow.bundle("qdq"), tmp_path / "b", computed_scale).path
    layers = {layer["name"] for layer in flow.bundle("qdq").manifest.details["layers"]}
    before = snapshot(tmp_path)
    ended = cli("check", bundle, "--lint", "--format", "json")
    assert ended.code == 3
    found = json.loads(ended.out)
    assert not found["passed"]
    assert {f["module"] for f in found["findings"]} == layers
    assert {f["rule"] for f in found["findings"]} == {"computed-scale-conv", "computed-scale-matmul"}
    for layer in layers:
        assert f"(module {layer})" in ended.err
    assert "hint: computed-scale-conv: keep the Q/DQ scale constant (1)" in ended.err
    # The lint comes first: nothing is compared, and nothing is built.
    table = cli("check", bundle, "--lint", "--checkpoint", flow.checkpoint)
    assert table.code == 3
    assert "lint for qdq: FAILED" in table.out
    assert "PyTorch dB" not in table.out
    built = cli("build-engine", bundle, "-o", tmp_path / "engine", "--backend", "tensorrt-rtx")
    assert built.code == (3 if find_spec("tensorrt_rtx") else 4)
    assert snapshot(tmp_path) == before


def test_lint_and_parity_in_one_command(cli: Cli, flow: Flow) -> None:
    ended = cli("check", flow.bundles["qdq"], "--lint", "--checkpoint", flow.checkpoint, "--format", "json")
    assert ended.code == 0, ended.err
    verdict = json.loads(ended.out)
    assert verdict["passed"]
    assert verdict["layers"]
    assert verdict["lint"]["passed"]
    assert verdict["lint"]["findings"] == []


def test_lint_of_any_onnx_file(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    shutil.copytree(flow.bundles["qdq"], tmp_path / "copy")
    assert cli("check", tmp_path / "copy" / "model.onnx", "--lint").code == 0
    (tmp_path / "broken.onnx").write_bytes(b"ftrt")
    assert_refused(cli("check", tmp_path / "broken.onnx", "--lint"), 3, "broken.onnx is not an ONNX graph")
    assert_refused(cli("check", tmp_path / "none", "--lint"), 2, "no such path")
    assert_refused(cli("check", flow.checkpoint, "--lint"), 3, "is a checkpoint, and a bundle is needed here")


def test_lint_needs_no_torch_and_no_engine(flow: Flow) -> None:
    ended = process("check", flow.bundles["qdq"], "--lint", without=tuple(set(HEAVY) - {"onnx", "onnx_ir", "onnxscript"}))
    assert ended.code == 0, ended.err
