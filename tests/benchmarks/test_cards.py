"""The table of large models is the one that their configurations give."""

from __future__ import annotations

import json

import pytest

from benchmarks.cards.__main__ import BEGIN, END, MEASURED, PAGE, PROMPTS, RECIPES_BEGIN, RECIPES_END, passes, recipes, table
from benchmarks.cards.models import MODELS


@pytest.mark.nightly
def test_the_page_has_the_tables() -> None:
    page = PAGE.read_text()
    for begin, end, text in ((BEGIN, END, table()), (RECIPES_BEGIN, RECIPES_END, recipes())):
        assert page[page.index(begin) + len(begin) : page.index(end)].strip() == text


def test_passes_grow_with_the_steps_and_halves() -> None:
    assert passes(20, 2) == 2 * passes(20, 1)
    assert passes(1, 1) == 3 * PROMPTS + 4 + 14 + 8 + 4  # trajectories and scales, references, GPTQ, comparison, cost of the step


def test_the_first_row_is_the_network_that_was_measured() -> None:
    measured = json.loads((MEASURED / "quantize.json").read_text())["result"]
    assert MODELS[0].parameters() == measured["parameters"]
    assert abs(MODELS[0].macs() / measured["macs"] - 1) < 0.01
