"""The combinations that the study of schedules measures, and the tables that it writes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.combined.__main__ import HERE, LOWER, _section
from benchmarks.combined.study import FLOAT, Figures, Turns, combinations
from dq_deploy.artifacts.turns import members_at

TIMESTEPS = [50.0 * step for step in range(20)]


def test_each_pair_gives_the_better_member_as_many_steps_at_either_end() -> None:
    found = [turns for turns in combinations(TIMESTEPS, LOWER) if turns.switches]
    runs = {}
    for turns in found:
        better = FLOAT if FLOAT in turns.members else "w8a8"
        mine = members_at(TIMESTEPS, turns.switches) == turns.members.index(better)
        runs.setdefault((frozenset(turns.members), int(mine.sum())), []).append(bool(mine[-1]))
    assert len(runs) == 4 + 3 * len(LOWER)
    assert all(sorted(first) == [False, True] for first in runs.values())


def test_names() -> None:
    assert Turns(("w8a8",)).name == "w8a8"
    assert Turns(("w8a8", FLOAT), (100.0,)).name == "w8a8; float from 100 on"


def test_the_page_has_what_was_measured() -> None:
    page = (HERE / "RESULTS.md").read_text()
    for model in ("dit", "unet"):
        cells = [Figures.model_validate_json(file.read_text()) for file in (HERE / "results" / model).glob("*.json")]
        assert {cell.name for cell in cells} == {turns.name for turns in combinations(TIMESTEPS, LOWER)}
        assert all(line in page for line in _section(model, HERE / "results" / model))


def test_nothing_measured_is_no_section(tmp_path: Path) -> None:
    assert _section("dit", tmp_path) == []
