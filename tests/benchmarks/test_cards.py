"""The table of large models is the one that their configurations give."""

from __future__ import annotations

import json

import pytest

from benchmarks.cards.__main__ import BEGIN, END, MEASURED, PAGE, table
from benchmarks.cards.models import MODELS


@pytest.mark.nightly
def test_the_page_has_the_table() -> None:
    page = PAGE.read_text()
    assert page[page.index(BEGIN) + len(BEGIN) : page.index(END)].strip() == table()


def test_the_first_row_is_the_network_that_was_measured() -> None:
    measured = json.loads((MEASURED / "quantize.json").read_text())["result"]
    assert MODELS[0].parameters() == measured["parameters"]
    assert abs(MODELS[0].macs() / measured["macs"] - 1) < 0.01
