"""The table that the study of refitting writes, and the LoRA that it trains."""

from __future__ import annotations

from pathlib import Path

from benchmarks.refit.__main__ import HERE, section
from benchmarks.refit.study import PRESETS, WAYS, Figures, row


def test_the_page_has_what_was_measured() -> None:
    results = HERE / "results"
    measured = {file.stem for file in results.glob("*.json")}
    assert {Figures(preset=preset, weight=1, way=way, psnr_db=[], snr_db=[]).name for preset in PRESETS for way in WAYS} <= measured
    page = (HERE / "RESULTS.md").read_text()
    lines = section(results)
    assert len(lines) > len(measured)
    assert all(line in page for line in lines)


def test_rows(tmp_path: Path) -> None:
    assert section(tmp_path) == []
    old = Figures(preset="w8a8", weight=1, way="old", psnr_db=[20.0, 30.0], snr_db=[9.0, 10.0, 12.0])
    refitted = Figures(preset="w8a8", weight=1, way="refit", psnr_db=[40.0, 40.0], snr_db=[30.0], layers=3, clipped=0.0012)
    assert row(old) == "| as it was, without the LoRA | 25.0 ± 5.0 | 20.0 | 10.0 |  |"
    assert row(refitted) == "| refit | 40.0 ± 0.0 | 40.0 | 30.0 | 3 layers, 0.12% of their weights clipped |"
    for cell in (refitted, old):
        (tmp_path / f"{cell.name}.json").write_text(cell.model_dump_json())
    (tmp_path / "float-1.txt").write_text("12.3\n")
    assert section(tmp_path)[1] == "## W8A8, LoRA × 1; without the LoRA the float model's images have 12.3 dB"
    assert section(tmp_path)[-2:] == [row(old), row(refitted)]
