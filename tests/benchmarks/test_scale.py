"""The stages of ``benchmarks/scale`` on a UNet of one level."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks.scale.__main__ import main, recorded
from benchmarks.scale.measuring import Watch, cpu_seconds, folder_bytes, peak_bytes
from benchmarks.scale.report import write_report
from benchmarks.scale.setting import SMALL, Setting
from benchmarks.scale.stages import STAGES, external_data
from benchmarks.scale.static_twin import write_static_twin
from dq_deploy.artifacts import open_artifact
from dq_deploy.console import Output

TINY = replace(SMALL, block_out_channels=(32,), sample_size=8)


def quiet() -> Output:
    return Output(quiet=True, stdout=Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the results of quantization and one export."""
    folder = tmp_path_factory.mktemp("scale")
    return folder, {name: STAGES[name](TINY, folder, quiet()) for name in ("quantize", "tensorrt")}


def test_the_default_is_stable_diffusion_1_5() -> None:
    assert Setting.from_json(Setting().to_json()) == Setting()
    assert Setting().sample_shape == (4, 64, 64)
    assert (Setting().conditions()["encoder_hidden_states"].shape[1:]) == (77, 768)


def test_quantization_and_export_say_what_they_made(work: tuple[Path, dict[str, Any]]) -> None:
    folder, results = work
    facts = results["quantize"]
    assert facts["float_bytes"] == 4 * facts["parameters"] > 0
    assert facts["float_layers"] == 1
    assert len(open_artifact(folder / "checkpoint", "checkpoint").manifest.details["layers"]) == facts["layers"]
    assert len(facts["snr_db"]) == TINY.steps
    assert {"torch", "onnx_ir"} <= set(results["tensorrt"]["modules"])


def test_weights_outside_the_bundle_are_refused(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    for location in ("model.onnx.data", "../elsewhere"):
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        graph = onnx.helper.make_graph([], "g", [], [], [tensor])
        (tmp_path / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
        if location.startswith(".."):
            with pytest.raises(ValueError, match=r"\.\./elsewhere"):
                external_data(tmp_path / "model.onnx")
        else:
            assert external_data(tmp_path / "model.onnx") == {"tensors": 1, "locations": ["model.onnx.data"]}


def test_the_static_twin_selects_a_constant_row(work: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = work
    write_static_twin(folder / "tensorrt", tmp_path / "static")
    graphs = [onnx.load(open_artifact(path, "bundle").file("model.onnx")).graph for path in (folder / "tensorrt", tmp_path / "static")]
    computed = [{value for node in graph.node for value in node.output} for graph in graphs]
    assert "dq_deploy.row" in computed[0]
    assert "dq_deploy.row" not in computed[1]
    assert "dq_deploy.row" in {tensor.name for tensor in graphs[1].initializer}
    assert "timestep" in {value for node in graphs[1].node for value in node.input}  # of the time embedding
    layers = [sum(node.op_type in ("Conv", "MatMul") for node in graph.node) for graph in graphs]
    assert layers[0] == layers[1]


def test_a_process_and_its_children_are_watched() -> None:
    child = "import subprocess, sys; x = bytearray(30 << 20); subprocess.run([sys.executable, '-c', 'x = bytearray(60 << 20); input()'])"
    process = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, text=True)
    watch = Watch()
    threading.Timer(1.5, process.stdin.close).start()  # type: ignore[union-attr]
    watch.run(process)
    assert watch.parent > 30 << 20
    assert watch.children > 60 << 20
    assert watch.together > 90 << 20
    assert peak_bytes() > 1 << 20
    assert cpu_seconds() > 0


def test_an_unknown_stage_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--small", "--work", str(tmp_path), "--results", str(tmp_path), "--stages", "quantize,nonsense"])
    assert done.exit_code == 2
    assert "nonsense" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
def test_a_stage_runs_in_a_child_and_is_not_run_twice(work: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = work
    (folder / "modules.txt").write_text("json\nonnx")
    first = recorded(TINY, "imports", folder, tmp_path)
    assert first["result"] == {"modules": 2}
    assert first["peak_bytes"] > 10 << 20
    assert first["together_peak_bytes"] >= first["peak_bytes"]
    assert first["wall_s"] > 0
    assert recorded(TINY, "imports", folder, tmp_path) == first
    (tmp_path / "imports.json").write_text(json.dumps({**first, "setting": replace(TINY, seed=1).to_json(), "wall_s": 0}))
    assert recorded(TINY, "imports", folder, tmp_path)["wall_s"] > 0  # that was of another setting


def stage(result: dict[str, Any], **numbers: float) -> dict[str, Any]:
    named = {"threads": 2, "cpu": "a CPU", "torch": "2", "load": "", "wall_s": 60.0, "cpu_s": 90.0, "disk_bytes": 10**9}
    peaks = {"peak_bytes": 3 * 10**9, "children_peak_bytes": 0, "together_peak_bytes": 3 * 10**9}
    return {**named, **peaks, **numbers, "result": result}


def test_the_page_judges_every_goal(work: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    facts = {**work[1]["quantize"], "float_bytes": 2 * 10**9}
    export = {"data": {"tensors": 3, "locations": ["model.onnx.data"]}}
    engine = {
        "weights_bytes": 5 * 10**8,
        "planned_int8": 9,
        "planned_layers": 10,
        "kernels": 102,
        "version": "1",
        "compute_capability": "8.9",
    }
    done = {
        "quantize": stage(facts, wall_s=1000.0, together_peak_bytes=25 << 30),
        "tensorrt": stage(export),
        "onnxruntime": stage(export, peak_bytes=4 * 10**9),
        "engine": stage(engine),
        "imports": stage({}, peak_bytes=5 * 10**8),
        "again": stage({"files": ["manifest.json", "model.onnx"], "differing": ["model.onnx"]}),
        "static-engine": stage({**engine, "kernels": 100}),
    }
    half = {"quantize": stage(facts), "engine": stage({**engine, "weights_bytes": 25 * 10**7})}
    write_report({TINY: done, replace(TINY, preset="w4a8"): half}, tmp_path / "RESULTS.md", quiet())
    page = (tmp_path / "RESULTS.md").read_text()
    verdicts = dict(line[2:].split(": ", 1) for line in page.splitlines() if line.startswith("- "))
    judged = {goal.split(" ")[0]: found.split(".")[0] for goal, found in verdicts.items()}
    assert verdicts["module to engine in 20 minutes"] == "met. 19 min 40 s."
    assert verdicts["within 24 GiB of memory"] == "missed. 25.0 GiB."
    assert [found.split(".")[0] for goal, found in verdicts.items() if goal.startswith("peak of")] == ["met", "missed"]
    assert judged["engine"] == judged["kernels"] == judged["external"] == "met"
    assert judged["planned"] == "missed"
    assert judged["the"] == "missed"
    assert "0.250 ×" in page
    assert "| W8A8 | 8.9 | 9 of 10 | 102 | 100 | 1.020 | 0.50 GB | 0.250 | 1.000 |" in page
    assert "| W4A8 | 8.9 | 9 of 10 | 102 | – | – | 0.25 GB | 0.125 | 0.500 |" in page
    assert os.fspath(tmp_path) not in page


def test_folders_are_measured(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(5))
    assert folder_bytes(tmp_path) == 5
