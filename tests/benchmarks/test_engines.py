"""The study of engines: the rewritten graphs compute what the exported ones do, the page is what is recorded, and targets can be missed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest
import torch

from benchmarks.engines.plain_static import plain_static
from benchmarks.engines.report import PAGE, load, page, targets
from benchmarks.engines.study import build, cell_name, rewritten
from benchmarks.engines.table_forms import FORMS
from dq_deploy.artifacts import Artifact
from dq_deploy.exporters import export
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.tiny import PlainUNet, make_checkpoint, run, snr_db

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
T = torch.tensor([0.0, 400.0, 990.0])


@pytest.fixture(scope="module")
def per_timestep(plain_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(plain_checkpoint.artifact, tmp_path_factory.mktemp("forms") / "bundle", target="qdq", dtype="fp32")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_tables_computes_the_same(per_timestep: Artifact, form: str, tmp_path: Path) -> None:
    made = rewritten(per_timestep, tmp_path / "bundle", FORMS[form])
    assert torch.equal(run(made, X, T), run(per_timestep, X, T))
    before, after = (count(b, "Gather", "Unsqueeze") for b in (per_timestep, made))
    assert (after == before) if form == "gathered" else (after < before / 2 if form == "one-table" else after < before)


def test_the_plain_form_computes_what_the_static_graph_does(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(PlainUNet(), tmp_path / "checkpoint", activations="static", zero_points=False, dilation="none")
    exported = export(checkpoint.artifact, tmp_path / "bundle", target="qdq", dtype="fp32")
    plain = rewritten(exported, tmp_path / "plain", plain_static)
    assert snr_db(run(exported, X, T), run(plain, X, T)) > 60
    # The softmax's scale stays outside, for its zero-point; no other quantizer or product is multiplied by one.
    names = {node.name.rpartition("/")[0] for node in onnx.load(plain.path / "model.onnx").graph.node if node.op_type == "Mul"}
    quantizers = {entry["name"] for entry in plain.manifest.details["quantizers"]}
    assert names & quantizers == {"matmul_1.lhs"}
    assert names & {layer["name"] for layer in plain.manifest.details["layers"]} == {"matmul_1"}


def count(bundle: Artifact, *operators: str) -> int:
    return sum(node.op_type in operators for node in onnx.load(bundle.path / "model.onnx").graph.node)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_a_cell_is_what_the_compiler_made(per_timestep: Artifact, tmp_path: Path) -> None:
    cell = build(per_timestep, tmp_path / "engine", model="UNet", precision="w8a8", kind="per-timestep", capabilities=("8.9",))
    engine = cell.engines["8.9"]
    assert engine.planned == len(per_timestep.manifest.details["layers"])
    assert engine.planned_int8 == engine.planned - len(engine.not_int8)
    assert engine.kernels >= engine.planned_int8 > 0
    assert cell.clipped == 0


def test_the_page_is_what_is_recorded() -> None:
    assert page(load()) == PAGE.read_text()


def test_a_cell_that_is_missing_is_named() -> None:
    found = load()
    del found[cell_name("UNet", "w8a8", "static")]
    text = page(found)
    assert "unet-w8a8-static" in text.partition("Not measured yet: ")[2]
    where = "UNet w8a8 on 8.9"
    assert not any(name.startswith(where) for name in targets(found)["kernels at most 1.02 × static's"])


SPOILED: dict[str, tuple[str, dict[str, int]]] = {
    "every planned conv and GEMM in INT8": ("planned_int8", {"w8a8": 1}),
    "kernels at most 1.02 × static's": ("kernels", {"w8a8": 10_000}),
    "weights at most 0.15 × FP32's": ("weights_bytes", {"w4a4": 10**9}),
    "w4a4: w4a8's kernels plus at most the clips": ("kernels", {"w4a4": 10_000}),
}


@pytest.mark.parametrize("target", SPOILED)
def test_a_target_that_is_missed_says_so(target: str) -> None:
    field, values = SPOILED[target]
    found = load()
    for preset, value in values.items():
        name = cell_name("UNet", preset, "per-timestep")
        engine = found[name].engines["8.9"].model_copy(update={field: value})
        found[name] = found[name].model_copy(update={"engines": {**found[name].engines, "8.9": engine}})
    before, after = targets(load())[target], targets(found)[target]
    assert sum(after.values()) < sum(before.values())


def test_every_planned_product_of_the_built_in_models_is_int8() -> None:
    outcomes = targets(load())["every planned conv and GEMM in INT8"]
    assert outcomes
    assert all(outcomes.values())
