"""The benchmark of other people's networks: each is built and quantized at a small size, and the page comes from figures in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import dq_deploy
from benchmarks.accuracy.results import CellResult, GridFigures, write_result
from benchmarks.accuracy.settings import FLOAT, Cell, Settings
from benchmarks.networks.command import main
from benchmarks.networks.data import DATA
from benchmarks.networks.methods import MATRYOSHKA, NEAREST, OURS, OURS_STATIC, TABLES, TRAINED
from benchmarks.networks.network import NAMES, Network, network, scheduler_of, source_name
from benchmarks.networks.report import accuracy_folder, few_bits_folder, write_report
from benchmarks.networks.speed import BASELINE, NNCF, OURS_OPENVINO, OURS_ORT
from benchmarks.networks.training import noised
from benchmarks.networks.weights import make_sane
from dq_deploy.errors import EnvironmentProblem
from dq_deploy.quantization import load_checkpoint
from tests.nightly import mostly_nightly

OPTIONS: dict[str, Any] = {"steps": 2, "calibration_samples": 4, "reference_samples": 2, "iterations": 0, "dilation": "none"}


def small(name: str, **options: Any) -> tuple[Network, torch.nn.Module]:
    own = network(name)
    if own.conditions == "pictures" and not DATA.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    try:
        return own, own.fresh(**own.small, **options)
    except EnvironmentProblem as error:
        pytest.skip(error.message)


CASES = {**{name: (name, {}) for name in NAMES}, "adm in its new order": ("adm", {"new_order": True})}


@pytest.mark.parametrize("case", mostly_nightly(CASES, "sit"))
def test_each_network_is_quantized(case: str, tmp_path: Path) -> None:
    name, options = CASES[case]
    own, model = small(name, **options)
    make_sane(model, own.shape, own.inputs(8), scheduler_of(own.time))
    assert all(float(p.std()) > 1e-3 / p[0].numel() ** 0.5 for p in model.parameters() if p.dim() >= 2)
    made = own.source(model)
    times = torch.zeros(8) if own.time == "edm" else torch.linspace(10, 900, 8)
    with torch.no_grad():
        output = model(torch.randn(8, *own.shape), times, **own.inputs(8))
    assert 0.3 < float(output.square().mean().sqrt()) < 3
    checkpoint = dq_deploy.quantize(
        model, tmp_path / "checkpoint", scheduler=made["scheduler"], sample_shape=made["sample_shape"],
        conditions=dict(made.get("conditions", {})) or None, max_float_share=1.0, **OPTIONS,
    )  # fmt: skip
    assert min(checkpoint.manifest.details["snr_db"]["after_distillation"]) > 12
    assert len(load_checkpoint(tmp_path / "checkpoint").details.layers) >= 5


@pytest.mark.parametrize("time", ["noise", "velocity", "flow", "edm"])
def test_what_is_learned_is_what_the_scheduler_takes(time: Any) -> None:
    scheduler = scheduler_of(time)
    torch.manual_seed(0)
    clean = torch.rand(1, 1, 8, 8) * 2 - 1
    noisy, times, target = noised(clean, torch.tensor([400]), scheduler)
    if time == "flow":
        found = noisy - times / 1000 * target
    elif time == "edm":
        sigma = torch.exp(4 * times)
        found = scheduler.precondition_outputs(noisy * (sigma**2 + 0.25).sqrt(), target, sigma)
    else:
        found = scheduler.step(target, 400, noisy).pred_original_sample
    assert torch.allclose(found, clean, atol=1e-4)


def test_the_page_comes_from_the_figures(tmp_path: Path) -> None:
    settings = Settings(steps=10, calibration_samples=8, iterations=0, grid_samples=4)
    folder = accuracy_folder(tmp_path / "results", settings)
    for name in ("adm", "dit"):
        facts = {"name": name, "title": name.upper(), "family": "unet", "parameters": 5_000_000, "time": "noise"}
        (folder).mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps({**facts, "trained_steps": 7 if name == "adm" else 0}))
        errors = {FLOAT: None, OURS: 0.01, OURS_STATIC: 0.02, "onnxruntime": 0.1, "nncf": 0.001, TABLES: 0.005, NEAREST: 0.02}
        for method, error in errors.items():
            cell = Cell(model=source_name(name), preset=FLOAT if method == FLOAT else "w8a8", method=method)
            grid = GridFigures(samples=4, wall_s=1, timesteps=[1.0], final_power=[1.0] * 4)
            if error is not None:
                psnr = [30.0, 31.0, 32.0, 33.0] if method == OURS else [20.0, 20.0, 20.0, 20.0]
                grid = GridFigures(samples=4, wall_s=1, timesteps=[1.0], final_error=[error] * 4, psnr_db=psnr)
            found = CellResult(cell=cell, measured="2026-11-30", model_sha256="a", code_sha256="b", config={}, settings=settings,
                               environment={}, grid=grid)  # fmt: skip
            write_result(cell.result_file(folder), found)
            if name == "adm" and method in (OURS, OURS_STATIC):  # from other trajectories the other way round
                other = cell.model_copy(update={"seed": 8})
                lower = grid.model_copy(update={"final_error": [0.002 / error] * 4}) if error else grid
                write_result(other.result_file(folder), found.model_copy(update={"cell": other, "grid": lower}))

    def row(contender: str, batch: int, ratio: float) -> dict[str, Any]:
        return {"contender": contender, "batch": batch, "ratio": ratio, "ratio_low": ratio, "ratio_high": ratio, "median_ms": 10 * ratio}

    speed = {
        "name": "adm", "title": "ADM",
        "rows": [row(BASELINE, 1, 1.0), row(OURS_ORT, 1, 1.25), row(NNCF, 1, 0.5), row(OURS_OPENVINO, 4, 0.5), row(NNCF, 4, 0.4),
                 row(BASELINE, 4, 1.0)],
        "failures": [{"contender": OURS_OPENVINO, "batch": 1, "threads": None, "error": "RuntimeError: no registers"}],
        "machine": {"cpu": "a CPU", "instructions": ["avx2"], "versions": {"openvino": "1"}}, "note": "not alone.",
    }  # fmt: skip
    (tmp_path / "results" / "speed").mkdir()
    (tmp_path / "results" / "speed" / "adm.json").write_text(json.dumps(speed))
    write_report(tmp_path / "results", tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "## Accuracy, calibrated on 8 trajectories of 10 steps" in text
    assert "| ADM | 5.0M | 7 steps | 20.0 (20.0–20.0) | 17.0 | 10.0 | 30.0 | ▼ -10.0 (-10.0 … -10.0) | ▲ +3.0 (+3.0 … +3.0) |" in text
    assert "| DIT | 5.0M | random, velocity |" in text
    luck = text[text.index("### Calibrated on other trajectories") :]
    assert "| ADM | ours | 0 | 20.0 | 17.0 | ▲ +3.0 (+3.0 … +3.0) |\n| ADM | ours | 8 | 7.0 | 10.0 | ▼ -3.0 (-3.0 … -3.0) |\n\n" in luck
    assert "| DIT |" not in luck.partition("## Speed")[0]
    assert "| ADM | 31.5 | 20.0 | 20.0 | 20.0 | ▲ +11.5 (+10.5 … +12.5) |" in text
    assert "| ADM | 17.0 | 23.0 | 20.0 | ▲ +6.0 (+6.0 … +6.0) | ▼ -3.0 (-3.0 … -3.0) |" in text
    of = "(ours 3, ours, static 3, `quantize_static` 2, NNCF 2, ours, tables alone 2, ours, tables alone, nearest codes 2)"
    assert f"14 of 14 figures were measured with other code than that beside this file {of}." in text
    assert "| ADM | **does not run** | 2.00 | … | 0.80 (0.80–0.80) | … | … |" in text
    assert "- ADM, ours on OpenVINO: batch 1: `RuntimeError: no registers`" in text
    assert "- batch 4, ours on OpenVINO beside NNCF on OpenVINO: from 0.80 × (ADM) to 0.80 × (ADM); as fast or faster on 0 of 1" in text
    assert "Ours against the best peer: ahead on 0, level on 0, behind on 2 networks; against our own static: ahead on 2" in text
    assert "Timed with scale tables alone: all of them." in text
    assert "a CPU (avx2), openvino 1. not alone." in text


def test_few_bits_have_a_table_for_each_preset(tmp_path: Path) -> None:
    settings = Settings(steps=10, calibration_samples=8, iterations=40, grid_samples=4)
    folder = few_bits_folder(tmp_path / "results", settings)
    folder.mkdir(parents=True)
    facts = {"name": "adm", "title": "ADM", "family": "unet", "parameters": 5_000_000, "time": "noise", "trained_steps": 0}
    (folder / "adm.json").write_text(json.dumps(facts))
    errors = {(FLOAT, FLOAT): None, ("w4a8", NEAREST): 0.1, ("w4a8", TRAINED): 0.01, ("w4a8", OURS): 0.001, ("w3a8", OURS): 0.02,
              ("w3a8", MATRYOSHKA): 0.04}  # fmt: skip
    for (preset, method), error in errors.items():
        cell = Cell(model=source_name("adm"), preset=preset, method=method)
        given = {"final_power": [1.0] * 4} if error is None else {"final_error": [error] * 4}
        grid = GridFigures(samples=4, wall_s=1, timesteps=[1.0], **given)
        found = CellResult(cell=cell, measured="2026-11-30", model_sha256="a", code_sha256="b", config={}, settings=settings,
                           environment={}, grid=grid)  # fmt: skip
        write_result(cell.result_file(folder), found)
    write_report(tmp_path / "results", tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "## Weights of few bits, calibrated on 8 trajectories of 10 steps" in text
    assert "40 iterations a block" in text
    row = "| ADM | random, velocity | 10.0 | 20.0 | 30.0 | ▲ +20.0 (+20.0 … +20.0) | ▲ +10.0 (+10.0 … +10.0) |"
    assert row in text.partition("### W4A8")[2].partition("### W3A8")[0]
    assert "| ADM | random, velocity | 17.0 | 14.0 | ▼ -3.0 (-3.0 … -3.0) |" in text.partition("### W3A8")[2]
    assert "VQ3A8" not in text


def test_what_the_command_refuses(tmp_path: Path) -> None:
    assert "unknown network 'x'" in CliRunner().invoke(main, ["x", "--speed"]).output
    assert "unknown method 'dilatequant'" in CliRunner().invoke(main, ["adm", "--accuracy", "--methods", "dilatequant"]).output
    few = ["adm", "--few-bits", "--methods", "nncf"]
    assert "unknown method 'nncf'" in CliRunner().invoke(main, few).output
    assert "unknown preset 'w4a4'" in CliRunner().invoke(main, ["adm", "--few-bits", "--presets", "w4a4"]).output
    assert "'first' is no seed" in CliRunner().invoke(main, ["adm", "--accuracy", "--seeds", "0,first"]).output
    assert "nothing is named in ','" in CliRunner().invoke(main, ["adm", "--accuracy", "--seeds", ","]).output
    run = CliRunner().invoke(main, ["adm", "--results", str(tmp_path)])
    assert run.exit_code == 2
    assert "give --accuracy, --few-bits, --speed or more than one" in run.output
