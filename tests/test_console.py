"""What goes to stdout, what to stderr, and how progress looks with and without a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from rich.console import Console

from dq_deploy.commands.bench import show_bench
from dq_deploy.console import Output, clock, duration, megabytes, to_json
from dq_deploy.errors import UsageError
from dq_deploy.progress import Progress
from tests.report.conftest import latency


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def on_stderr(**options: bool) -> tuple[Output, io.StringIO, Clock]:
    text, clock = io.StringIO(), Clock()
    return Output(stderr=Console(file=text, width=120), clock=clock, **options), text, clock


def test_table_goes_to_stdout_and_json_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output("table")
    output.table("Latency", ["engine", "median"], [["a [b]", "1.25 ms"], ["c", "12.50 ms"]])
    output.text("verdict: passed")
    output.data({"ignored": 1})
    out, err = capsys.readouterr()
    assert err == ""
    assert "Latency" in out
    assert "a [b]" in out
    assert "│  1.25 ms │" in out  # a column of numbers is set to the right
    assert out.endswith("verdict: passed\n")


def test_json_is_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output("json")
    output.table("Latency", ["engine"], [["a"]])
    output.text("verdict: passed")
    output.note("on the way")
    output.data({"path": Path("a/b"), "snr_db": float("inf"), "text": "×"})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"path": "a/b", "snr_db": None, "text": "×"}
    assert err == "on the way\n"
    with pytest.raises(RuntimeError, match="one JSON object"):
        output.data({})


def test_wide_tables_are_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table("", ["layer"], [["x" * 150]])
    assert "x" * 150 in capsys.readouterr().out


def test_notes_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        output = Output(quiet=quiet)
        output.note("passing [bold]by[/bold]")
        output.warn("mind the gap")
        output.error(UsageError("no such path: " + "p" * 300, "try another"))
        out, err = capsys.readouterr()
        assert out == ""
        assert ("passing [bold]by[/bold]\n" in err) is not quiet
        assert err.endswith("warning: mind the gap\nerror: no such path: " + "p" * 300 + "\nhint: try another\n")


def test_progress_without_a_terminal_is_a_line_every_ten_seconds() -> None:
    output, text, clock = on_stderr()
    with output.progress("block conv_in", 100) as advance:
        for _ in range(100):
            clock.now += 0.25
            advance(note="loss 0.1")
    assert text.getvalue().splitlines() == [
        "block conv_in: 40/100, 10 s, about 15 s left, loss 0.1",
        "block conv_in: 80/100, 20 s, about 5 s left, loss 0.1",
        "block conv_in: done at 100/100 after 25 s",
    ]


def test_the_time_left_is_judged_by_the_steps_after_the_first() -> None:
    output, text, clock = on_stderr()
    with output.progress("blocks", 10) as advance:
        for seconds in (60.0, *[5.0] * 9):
            clock.now += seconds
            advance()
    assert text.getvalue().splitlines()[:2] == ["blocks: 1/10, 1 min 00 s", "blocks: 3/10, 1 min 10 s, about 35 s left"]


def test_nested_progress_without_a_terminal_tells_of_long_tasks_only() -> None:
    output, text, clock = on_stderr()
    with output.progress("outer", 2) as outer:
        for seconds in (1.0, 30.0):
            with output.progress(f"inner {seconds:g}", 1) as inner:
                clock.now += seconds
                inner()
            outer()
    assert text.getvalue().splitlines() == ["inner 30: done at 1/1 after 30 s", "outer: done at 2/2 after 31 s"]


def test_progress_that_is_interrupted_says_where() -> None:
    output, text, _ = on_stderr()
    with pytest.raises(KeyboardInterrupt), output.progress("outer", 5) as advance:
        advance(2)
        raise KeyboardInterrupt
    assert text.getvalue() == "outer: stopped at 2/5 after 0 s\n"


def test_quiet_progress_says_nothing() -> None:
    output, text, _ = on_stderr(quiet=True)
    with output.progress("outer", 2) as advance:
        advance(1, "note")
    assert text.getvalue() == ""


def test_progress_fits_the_protocol_of_library_functions() -> None:
    progress: Progress = Output(quiet=True).progress
    with progress("description", 3) as advance:
        advance(steps=2, note="so far")


SCRIPT = """
from dq_deploy.console import Output
output = Output("json")
with output.progress("outer", 2) as outer:
    for name in "ab":
        with output.progress("inner [x] " + name, 3) as inner:
            for _ in range(3):
                inner(note="loss 0.5")
        output.note("finished " + name)
        outer()
output.data({"ok": True})
"""


@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_real_terminal_bars_are_drawn_on_stderr_only(no_color: bool) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"} | ({"NO_COLOR": "1"} if no_color else {})
    process = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=follower, env=environment, check=True)
    os.close(follower)
    drawn = b""
    while True:
        try:
            drawn += os.read(leader, 1 << 16)
        except OSError:  # what Linux answers at the end of a closed terminal
            break
    os.close(leader)
    assert json.loads(process.stdout) == {"ok": True}
    assert b"outer" in drawn
    assert b"2/2" in drawn
    assert b"finished a" in drawn
    assert (b"\x1b[38;" in drawn) is not no_color


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3599.7, "1 h 00 min"), (7384, "2 h 03 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_to_json_takes_what_commands_have() -> None:
    class Model(BaseModel):
        path: Path

    @dataclass
    class Row:
        value: float

    value = {
        "model": Model(path=Path("a")),
        "rows": (Row(1.5), Row(float("nan"))),
        "array": np.array([1.0, np.inf], np.float32),
        "scalar": np.int64(3),
        "tensor": torch.arange(2),
        1: True,
        "none": None,
    }
    assert to_json(value) == {
        "model": {"path": "a"},
        "rows": [{"value": 1.5}, {"value": None}],
        "array": [1.0, None],
        "scalar": 3,
        "tensor": [0, 1],
        "1": True,
        "none": None,
    }
    with pytest.raises(TypeError, match="no JSON for a object"):
        to_json(object())


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_stays_json_where_a_letter_cannot_be_written(encoding: str) -> None:
    written = io.BytesIO()
    value = {"a": "é–ж", "path": "\udcff", "│": 1}
    stream = io.TextIOWrapper(written, encoding)
    Output("json", stdout=Console(file=stream)).data(value)
    assert json.loads(written.getvalue().decode(encoding)) == value


def narrow() -> tuple[Output, io.StringIO]:
    text = io.StringIO()
    return Output(stdout=Console(file=text, width=80)), text


def test_a_name_that_is_too_long_for_the_terminal_loses_its_beginning() -> None:
    output, text = narrow()
    name = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
    output.table("layers", ["layer", "output dB", "why"], [[name, "43.52", "a reason that wraps where there is no room"]])
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "43.52" in line)
    assert "…" in row.split("│")[1]
    assert row.split("│")[1].strip().endswith("attn1.to_q")


def test_numbers_are_never_broken() -> None:
    output, text = narrow()
    output.table("", ["a contender with words", "95% interval", "n"], [["some words " * 9, "0.512–0.548", "1,234.5 ms"]])
    assert "│  0.512–0.548 │ 1,234.5 ms │" in text.getvalue()


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (1.9, "0:01"), (75, "1:15"), (3723, "1:02:03")])
def test_a_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


@pytest.mark.parametrize(("size", "shown"), [(9_210, "0.00921 MB"), (2_850_000, "2.85 MB"), (5_140_000_000, "5,140 MB")])
def test_megabytes(size: int, shown: str) -> None:
    assert megabytes(size) == shown


def test_a_latency_table_in_eighty_columns() -> None:
    output, text = narrow()
    show_bench(latency("openvino"), output)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "0.45–0.55" in text.getvalue()
    baseline = next(line for line in lines if line.startswith("│ float"))
    assert [cell.strip() for cell in baseline.split("│")[-3:-1]] == ["", "baseline"]
    assert "within" in text.getvalue()
