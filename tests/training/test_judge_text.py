"""Judging whether pictures are what their prompts say."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from dq_deploy.progress import silent
from dq_deploy.sources import load_source, text_pipeline
from training.judge_text import main, obedience, pairs_of, prompt


def test_prompts_that_differ_in_a_word() -> None:
    assert [prompt(number) for number in (0, 9, 10, 19)] == [
        ("a t-shirt", 0), ("an ankle boot, pointing left", 9), ("a top", 0), ("a boot, pointing right", 9),
    ]  # fmt: skip
    assert prompt(1, ["dark"]) == ("a pair of dark trousers", 1)
    assert prompt(3, ["wide"], [0, 8]) == ("a wide handbag", 8)


def test_a_line_about_pairs() -> None:
    pairs = torch.tensor([[10.0, 20.0, 30.0, 40.0], [20.0, 30.0, 40.0, 30.0]])
    assert obedience("width", pairs) == ["width", "narrow 25, wide 30", "+5 ± 5", "75%"]
    assert obedience("width", pairs[:, :1])[2] == "+10 ± nan"


def test_the_built_in_pipeline_obeys_brightness() -> None:
    pipeline = text_pipeline(load_source("builtin:fashion-mnist-text"))
    pairs = pairs_of(pipeline, "brightness", 5, 2.5, steps=5, seed=0, progress=silent)
    assert pairs.shape == (2, 5)
    assert (pairs[1] - pairs[0]).mean() > 20


def test_the_command_prints_both_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(main, ["--guidance-scales", "2.5", "--pictures", "2", "--word-pictures", "2", "--steps", "2"])
    assert result.exit_code == 0, result.output
    for said in ("class recognised, of 2 pictures", "dark", "patterned", "narrow", "pairs as said"):
        assert said in result.output
    without = CliRunner().invoke(main, ["--guidance-scales", "1", "--pictures", "1", "--word-pictures", "0", "--steps", "1"])
    assert without.exit_code == 0, without.output
    assert "pairs as said" not in without.output
    assert CliRunner().invoke(main, ["--guidance-scales", "much"]).exit_code == 2
