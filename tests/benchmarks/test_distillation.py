from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.distillation.report import time_to, write_report
from benchmarks.distillation.study import RUNS, Setting, resident
from dq_deploy.console import Output
from tests.flow import Flow


def test_time_to_a_level_lies_between_the_runs_around_it() -> None:
    runs = [{"cpu_s": 10.0, "q": 20.0}, {"cpu_s": 40.0, "q": 22.0}]
    assert time_to(runs, "q", 21.0) == pytest.approx(math.sqrt(10 * 40))
    assert time_to(runs, "q", 22.0) == pytest.approx(40)
    assert time_to(runs, "q", 19.0) == 10
    assert time_to(runs, "q", 22.1) is None


def test_memory_is_read_from_the_system() -> None:
    assert 0 < resident("VmRSS") <= resident("VmHWM")


@pytest.mark.nightly
def test_every_run_and_the_page(flow: Flow, tmp_path: Path) -> None:
    setting = Setting(str(flow.pipeline), "w8a8", batch_size=4, calibration_samples=2, pictures=2)
    work, results = tmp_path / "work", tmp_path / "results"
    work.mkdir()
    results.mkdir()
    runs = [("quality", "block", 0), *((what, kind, 1) for what in RUNS for kind in ("block", "end-to-end"))]
    for what, kind, iterations in runs:
        done = RUNS[what](setting, kind, iterations, work)
        assert (done["kind"], done["iterations"]) == (kind, iterations)
        (results / f"{what}-{kind}-{iterations}.json").write_text(json.dumps(done))
    write_report(results, setting, tmp_path / "RESULTS.md", Output(stdout=Console(file=io.StringIO())))
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| none | 0 | 0 s |" in page
    assert page.count("| block | 1 |") == page.count("| end-to-end | 1 |") == 1
    assert "Goal of 3 ×" in page
    assert (tmp_path / "curves.png").stat().st_size > 1000
