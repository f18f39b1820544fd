"""What makes a cell stale, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.accuracy.code_hash import code_sha256, quantization_sha256
from benchmarks.accuracy.confirmed import Confirmation, SameCode, read_confirmations
from benchmarks.accuracy.identity import differences, identity, state
from benchmarks.accuracy.results import CellResult, GridFigures, RivalFigures, read_all, read_result, rounded, write_result
from benchmarks.accuracy.settings import Cell, Settings, model_name
from dq_deploy.errors import ArtifactError, UsageError

CELL = Cell(model="builtin:fashion-mnist-unet", preset="w4a4", method="dilatequant")
SETTINGS = Settings()


def measured(cell: Cell = CELL, settings: Settings = SETTINGS, **changes: object) -> CellResult:
    wanted = identity(cell, settings, model_sha256="a" * 64, family="unet")
    fields = {
        "cell": cell,
        "measured": "2026-11-22",
        "model_sha256": wanted.model_sha256,
        "code_sha256": wanted.code_sha256,
        "config": wanted.config,
        "settings": settings,
        "environment": {},
        "grid": GridFigures(samples=settings.grid_samples, wall_s=1, timesteps=[1.0], psnr_db=[20.0], error=[[1.0]]),
        **changes,
    }
    return CellResult.model_validate(fields)


def look(found: CellResult | None, settings: Settings = SETTINGS, tier: str = "grid", **changes: object) -> tuple[str, str]:
    wanted = identity(CELL, settings, **{"model_sha256": "a" * 64, "family": "unet", **changes})
    return state(found, wanted, settings, tier)


def test_a_cell_of_the_same_settings_is_done() -> None:
    assert look(None) == ("missing", "")
    assert look(measured()) == ("done", "")
    assert look(measured(), tier="rival") == ("missing", "")


def test_sizes_of_other_tiers_do_not_matter() -> None:
    assert look(measured(), Settings(rival_samples=10, headline_samples=20))[0] == "done"
    rival = RivalFigures(samples=2000, wall_s=1, extractor="x", reference="y", frechet=1.0, replicates=[1.0])
    assert look(measured(rival=rival), Settings(rival_samples=10), "rival") == ("stale", "2000 samples")


@pytest.mark.parametrize(
    ("settings", "changes", "reason"),
    [
        (Settings(iterations=61), {}, "other settings (iterations)"),
        (Settings(calibration_samples=32), {}, "other settings (calibration_samples)"),
        (Settings(grid_samples=8), {}, "256 samples"),
        (SETTINGS, {"model_sha256": "b" * 64}, "other weights"),
    ],
)
def test_other_settings_and_weights_make_a_cell_stale(settings: Settings, changes: dict[str, str], reason: str) -> None:
    assert look(measured(), settings, **changes) == ("stale", reason)


def test_other_code_makes_a_cell_stale() -> None:
    assert look(measured(code_sha256="0" * 64)) == ("stale", "other code")
    # Also in a tier that was not measured: measuring it would throw the other figures away.
    assert look(measured(code_sha256="0" * 64), tier="rival") == ("stale", "other code")


def test_confirmations_lead_from_code_to_code() -> None:
    a, b, c, d = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
    same = SameCode(Confirmation(old=old, new=new, measured="2026-11-22", cells=(CELL,)) for old, new in [(a, b), (b, c)])
    assert same(a, a)
    assert same(a, c)
    assert same(c, a)
    assert not same(a, d)
    wanted = identity(CELL, SETTINGS, model_sha256="a" * 64, family="unet")
    old = measured(code_sha256=a)
    assert differences(old, wanted, same) == ["other code"]
    assert differences(old, wanted, SameCode([Confirmation(old=a, new=wanted.code_sha256, measured="2026-11-22", cells=(CELL,))])) == []


def test_a_setting_that_did_not_exist_yet_had_its_default() -> None:
    old = measured()
    config = {name: value for name, value in old.config.items() if name not in ("patience", "iterations")}
    changed = look(old.model_copy(update={"config": config}))
    assert changed == ("stale", "other settings (iterations)")


def test_a_broken_list_of_confirmations_is_named(tmp_path: Path) -> None:
    (tmp_path / "confirmed.json").write_text('[{"old": 1}]')
    with pytest.raises(ArtifactError, match="not a list of confirmations"):
        read_confirmations(tmp_path)


def test_end_to_end_factor_matters_to_nobody_else() -> None:
    assert look(measured(), Settings(end_to_end_factor=3.0))[0] == "done"


def test_code_hash_sees_code_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text('"""Doc."""\n\n\ndef f(x):\n    """Doc."""\n    return x + 1  # why\n')
    before = code_sha256([file])
    file.write_text("def f(x):\n    return (x\n            + 1)\n")
    assert code_sha256([file]) == before
    file.write_text("def f(x):\n    return x + 2\n")
    assert code_sha256([file]) != before
    file.rename(tmp_path / "b.py")
    assert code_sha256([tmp_path / "b.py"]) != before


def test_code_hash_is_of_the_quantization_package() -> None:
    assert len(quantization_sha256()) == 64
    assert quantization_sha256() == quantization_sha256()


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = CELL.result_file(tmp_path)
    assert file == tmp_path / "fashion-mnist-unet" / "w4a4" / "dilatequant.json"
    assert read_result(file) is None
    write_result(file, measured())
    assert read_result(file) == measured()
    assert read_all(tmp_path) == [measured()]
    assert [p.name for p in file.parent.iterdir()] == ["dilatequant.json"]  # no temporary file stays


def test_a_seed_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert CELL.model_copy(update={"seed": 2}).result_file(tmp_path).name == "dilatequant.seed2.json"


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    file = tmp_path / "m" / "w4a4" / "x.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"cell": 1}')
    with pytest.raises(ArtifactError, match=r"x\.json holds no figures of this harness: .*cell"):
        read_result(file)
    with pytest.raises(UsageError, match="no results in"):
        read_all(tmp_path / "none")


def test_numbers_are_rounded_by_significant_digits() -> None:
    assert rounded([123.456, [0.00123456]], 3) == [123.0, [0.00123]]


def test_models_are_named_by_their_folder(tmp_path: Path) -> None:
    assert model_name("builtin:fashion-mnist-dit") == "fashion-mnist-dit"
    assert model_name(str(tmp_path / "mine")) == "mine"
