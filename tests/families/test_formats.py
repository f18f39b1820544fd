"""The table of formats is what was recorded, and a cell of it is what happens."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.families.formats import BEGIN, END, PRESETS, STUDIED, read_records, run_cell, table
from tests.families.table import PAGE
from tests.nightly import mostly_nightly


def test_the_page_has_what_was_recorded() -> None:
    page = PAGE.read_text()
    assert page[page.index(BEGIN) + len(BEGIN) : page.index(END)].strip() == table(read_records())
    assert "not run" not in table(read_records())


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
@pytest.mark.parametrize("cell", mostly_nightly([f"{family}, {preset}" for family in STUDIED for preset in PRESETS]))
def test_a_cell(cell: str, tmp_path: Path) -> None:
    family, preset = cell.split(", ")
    row, recorded = run_cell(family, preset, tmp_path), read_records()[family][preset]
    assert (row.stage, row.error, row.failures) == (recorded.stage, recorded.error, recorded.failures), row.message
    assert (row.as_planned, row.planned) == (recorded.as_planned, recorded.planned)
