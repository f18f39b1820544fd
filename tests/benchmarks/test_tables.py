"""How figures look in the table, and what its marks mean."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy import report
from benchmarks.accuracy.bootstrap import Interval
from benchmarks.accuracy.code_hash import quantization_sha256
from benchmarks.accuracy.comparison import ModelResults
from benchmarks.accuracy.confirmed import Confirmation, SameCode
from benchmarks.accuracy.identity import identity
from benchmarks.accuracy.results import CellResult, GridFigures, HeadlineFigures, RivalFigures
from benchmarks.accuracy.settings import FLOAT, Cell, Settings
from benchmarks.accuracy.tables import (
    components_table,
    difference,
    dilations_table,
    headline_table,
    markdown,
    preset_table,
    seeds_table,
    with_interval,
)

SETTINGS = Settings(grid_samples=64)
GENERATOR = np.random.default_rng(0)
NOISE = GENERATOR.normal(0, 3, 64)


def result(method: str, psnr: float = 20.0, *, preset: str = "w4a4", seed: int = 0, **tiers: object) -> CellResult:
    cell = Cell(model="builtin:fashion-mnist-unet", preset=FLOAT if method == FLOAT else preset, method=method, seed=seed)
    wanted = identity(cell, SETTINGS, model_sha256="a", family="unet")
    values = (psnr + NOISE + GENERATOR.normal(0, 0.1, 64)).tolist()
    grid = GridFigures(samples=64, wall_s=1, timesteps=[1, 2], psnr_db=values, feature_distance=[0.1] * 64, error=[[1.0, 1.0], [2.0, 2.0]])
    if method == FLOAT:
        grid = GridFigures(samples=64, wall_s=1, timesteps=[1, 2], power=[[100.0, 100.0], [20.0, 20.0]])
    return CellResult(
        cell=cell, measured="2026-11-22", model_sha256="a", code_sha256=wanted.code_sha256, config=wanted.config, settings=SETTINGS,
        environment={}, grid=grid, **tiers,
    )  # fmt: skip


def model(*results: CellResult, seed: int = 0) -> ModelResults:
    return ModelResults("fashion-mnist-unet", results, seed)


def test_marks() -> None:
    assert difference(Interval(1, 0.5, 1.5)) == "▲ +1.00 (+0.50 … +1.50)"
    assert difference(Interval(1, 0.5, 1.5), more_is_better=False) == "▼ +1.00 (+0.50 … +1.50)"
    assert difference(Interval(-1, -1.5, -0.5)).startswith("▼ -1.00")
    assert difference(Interval(0.1, -0.1, 0.3)).startswith("= ")
    assert difference(None) == ""
    assert with_interval(Interval(1, 0.5, 1.5), 1) == "1.0 (0.5–1.5)"
    assert with_interval(None) == "…"


def test_markdown() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---:|\n| 1 | 2 |"


def test_preset_table_compares_with_dilatequant() -> None:
    results = model(result("dilatequant", 22), result("min-max", 18), result("mse", 22), result(FLOAT))
    lines = preset_table(results, "w4a4").splitlines()
    assert lines[2].startswith("| **DilateQuant** | 2")
    minmax = next(line for line in lines if line.startswith("| min-max"))
    assert "▼ -" in minmax
    assert "| = " in next(line for line in lines if line.startswith("| MSE"))
    # 10·log10(100/1) and 10·log10(20/2): the median of two steps lies between them.
    assert "| 15.0 (15.0–15.0) | 10.0 |" in minmax
    assert next(line for line in lines if line.startswith("| QuEST")) == "| QuEST-style |" + " … |" * 9
    assert not any("NNCF" in line for line in lines)
    assert preset_table(results, "w8a8") == "Not measured yet."
    assert "| NNCF" in preset_table(model(result("wd", preset="w8a8")), "w8a8")


def test_a_double_is_shown_in_both_tables() -> None:
    results = model(result("q-diffusion", 31, preset="w8a8"))
    assert "| – – ✓ | Q-Diffusion-style | 3" in components_table(results, ["w8a8"])
    assert "| Q-Diffusion-style | 3" in preset_table(results, "w8a8")
    assert "| nothing |" in preset_table(model(result("wd")), "w4a4")


def test_a_transformer_has_no_skip_that_could_be_joint() -> None:
    cells = [result(FLOAT), result("dilatequant")]
    assert "| DilateQuant, joint skips | …" in preset_table(model(*cells), "w4a4")
    transformer = model(cells[0].model_copy(update={"family": "transformer"}), cells[1])
    assert "joint" not in preset_table(transformer, "w4a4")
    assert transformer.cell("w4a4", "joint") is cells[1]


def test_dilations_are_compared_with_the_default() -> None:
    text = dilations_table(model(result("dilatequant", 22), result("asymmetric", 21)), ["w4a4"])
    assert "| the paper's (asymmetric) | 2" in text
    assert "▼ -" in text


def test_frechet_and_inception_are_compared_with_the_float_model() -> None:
    def rival(value: float) -> RivalFigures:
        replicates = (value + 3 + np.random.default_rng(5).normal(0, 0.2, 50)).tolist()
        return RivalFigures(samples=10, wall_s=1, extractor="x", reference="y", frechet=value, replicates=replicates)

    def headline(value: float) -> HeadlineFigures:
        replicates = (value + 5 + np.random.default_rng(6).normal(0, 0.2, 50)).tolist()
        kid = (value / 1000 + np.random.default_rng(7).normal(0, 1e-4, 20)).tolist()
        return HeadlineFigures(
            samples=5000, wall_s=1, extractor="x", reference="y", fid=value, fid_replicates=replicates, kid=kid, kid_size=1000
        )

    base = result(FLOAT, rival=rival(4.0), headline=headline(10.0))
    results = model(base, result("dilatequant", 22, rival=rival(5.0), headline=headline(12.5)))
    row = results.row("w4a4", "dilatequant")
    assert row is not None
    assert row.frechet is not None
    assert row.frechet_difference is not None
    assert row.frechet.low < row.frechet.value < row.frechet.high  # the replicates' bias is taken off
    assert row.frechet_difference.value == pytest.approx(1.0)
    assert row.frechet_difference.low == pytest.approx(1.0)  # the same resamples: the noise of both cancels
    text = headline_table(results, ["w4a4"])
    assert text is not None
    assert "| float | 10.00" in text
    assert "▼ +2.50" in text
    drawn = headline(12.5).model_copy(update={"drawn_by": "openvino"})
    assert "(drawn in INT8 by OpenVINO) | 12.50" in str(headline_table(model(base, result("dilatequant", headline=drawn)), ["w4a4"]))
    assert headline_table(model(result("dilatequant")), ["w4a4"]) is None


def test_seeds_are_summarized() -> None:
    results = [result("dilatequant", 22), result("dilatequant", 24, seed=1), result("min-max", 10)]
    text = seeds_table([model(*results, seed=0), model(*results, seed=1)])
    assert text is not None
    assert "| W4A4, DilateQuant | 2 |" in text
    assert "min-max" not in text
    assert seeds_table([model(*results, seed=0)]) is None


def test_cells_of_code_that_was_confirmed_are_not_called_old() -> None:
    found = model(result("dilatequant", 22).model_copy(update={"code_sha256": "before"}))
    assert "Measured with other code than that beside this file: w4a4 dilatequant." in report._state(found, SameCode())
    confirmed = Confirmation(old="before", new=quantization_sha256(), measured="2026-01-01", cells=())
    assert "other code" not in report._state(found, SameCode([confirmed]))
