"""The settings that the study of caching measures, and the tables that it writes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.caching.__main__ import HERE, section
from benchmarks.caching.study import STEPS, THRESHOLDS, Figures, Setting, Study, Times


def test_settings() -> None:
    settings = Study("dit", Path(), 2).settings()
    assert len({setting.name for setting in settings}) == len(settings) == len(STEPS) * (1 + len(THRESHOLDS) + 2)
    assert Setting(20, 20).name == "20-20"
    assert Setting(20, 20, 0.05).name == "20-cache-0.05"


def test_the_page_has_what_was_measured() -> None:
    page = (HERE / "RESULTS.md").read_text()
    for model in ("dit", "unet"):
        folder = HERE / "results" / model
        measured = {file.stem for file in folder.glob("[0-9]*.json")}
        known = Study(model, Path(), 2).settings()
        assert {setting.name for setting in known if setting.of == 20} <= measured <= {setting.name for setting in known}
        assert all(line in page for line in section(model, folder))


def test_rows(tmp_path: Path) -> None:
    assert section("dit", tmp_path) == []
    cached = Figures(of=20, steps=20, threshold=0.05, psnr_db=[20.0, 30.0], skipped=0.5, saved=0.4, engine="openvino")
    fewer = Figures(of=20, steps=10, threshold=None, psnr_db=[30.0, 30.0], skipped=0, saved=0, engine="openvino")
    times = Times(of=20, threshold=0.05, ratio=0.7, low=0.6, high=0.8, skipped=0.5, rounds=3, engine="openvino")
    for name, model in (("20-cache-0.05", cached), ("20-10", fewer), ("time-20-0.05", times)):
        (tmp_path / f"{name}.json").write_text(model.model_dump_json())
    text = "\n".join(section("dit", tmp_path))
    assert "| 20 steps, cache 0.05 | 50% | 40% | 25.0 ± 5.0 | 20.0 |" in text
    assert "| 10 steps (against 20 in float) | | | 30.0 ± 0.0 | 30.0 |" in text
    assert "| 20 steps, cache 0.05 | 50% | 0.70 (0.60 to 0.80) |" in text
