"""The one output sink: data on stdout (a table for people, one JSON object for machines), everything else on stderr."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from .errors import DqDeployError
from .progress import Advance, silent

Format = Literal["table", "json"]

# rich takes 80 columns for a pipe and then cuts cells; nobody looks at a pipe's right edge.
_PIPE_WIDTH = 200
# Where there is no terminal, a line this often is enough to see that a job lives, and few enough for a log.
_LINE_INTERVAL_S = 10.0
# Of a longer name this much of the end is shown, however little room there is.
_SHORTEST_NAME = 16


class Output:
    """Where a command puts what it has to say; its `progress` is the ``Progress`` that library functions take.

    ``quiet`` drops notes and progress; data, warnings and errors stay. Colours follow the terminal and ``NO_COLOR``. The consoles and the
    clock (seconds) are arguments for tests.
    """

    def __init__(
        self,
        format: Format = "table",  # noqa: A002  the flag is called --format
        quiet: bool = False,
        *,
        stdout: Console | None = None,
        stderr: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.format = format
        self.quiet = quiet
        self._stdout = stdout or _console(stderr=False)
        self._stderr = stderr or _console(stderr=True)
        self._clock = clock
        self._live: RichProgress | None = None
        self._depth = 0
        self._has_data = False

    def data(self, value: Mapping[str, Any] | Any) -> None:
        """Write the command's one JSON object; does nothing in table format.

        Mappings, sequences, dataclasses, pydantic models, paths and numpy or torch values are accepted. JSON knows no NaN and no infinity:
        they become null. Raises RuntimeError on a second call, for stdout would then be no JSON document.
        """
        if self.format != "json":
            return
        if self._has_data:
            raise RuntimeError("a command writes one JSON object, and this one has written its own already")
        self._has_data = True
        found = to_json(value)
        text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
        if not _encodable(text, self._stdout.encoding):  # by the terminal; or half of a pair of surrogates, by anybody
            text = json.dumps(found, indent=2, allow_nan=False)
        self._stdout.file.write(f"{text}\n")
        self._stdout.file.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table for people; does nothing in JSON format.

        Columns that hold only numbers are set to the right and never broken. Names that are too long for the terminal lose their beginning,
        since layers differ at their ends.
        Numbers should come as finished text ("12.3 ms"); anything else is passed through ``str``. Without any names no header is drawn.
        """
        if self.format != "table":
            return
        table = Table(title=Text(title) if title else None, title_justify="left", header_style="bold", show_header=any(columns))
        for index, name in enumerate(columns):
            numbers = bool(rows) and all(_is_number(row[index]) for row in rows)
            whole = max(len(str(row[index])) for row in rows) if numbers else None
            table.add_column(Text(name), justify="right" if numbers else "left", min_width=whole)
        for row in rows:
            table.add_row(*(_cell(str(cell)) for cell in row))
        self._stdout.print(table)

    def text(self, message: str) -> None:
        """Print a line of data for people, as a verdict below a table is; does nothing in JSON format."""
        if self.format == "table":
            _line(self._stdout, Text(message))

    def note(self, message: str) -> None:
        """Say something in passing."""
        if not self.quiet:
            _line(self._stderr, Text(message))

    def warn(self, message: str) -> None:
        """Warn, also when quiet."""
        _line(self._stderr, Text.assemble(("warning: ", "yellow"), message))

    def error(self, error: DqDeployError) -> None:
        """Report an error that the user can fix: what happened, then what to do next."""
        _line(self._stderr, Text.assemble(("error: ", "bold red"), error.message))
        if error.hint:
            _line(self._stderr, Text.assemble(("hint: ", "cyan"), error.hint))

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """Show a task of ``total`` steps with the time left: a bar on a terminal, elsewhere a line about every 10 s; tasks nest."""
        if self.quiet:
            with silent(description, total) as advance:
                yield advance
            return
        show = self._bar if self._stderr.is_terminal else self._lines
        self._depth += 1
        try:
            with show(description, total) as advance:
                yield advance
        finally:
            self._depth -= 1

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator[Advance]:
        owner = self._live is None
        # One live display holds every nested task: rich allows one at a time.
        live = self._live = self._live or _live_display(self._stderr)
        if owner:
            live.start()
        task = live.add_task(description, total=total, note="")
        try:
            yield lambda steps=1, note="": live.update(task, advance=steps, note=note)
        finally:
            if owner:
                live.stop()
                self._live = None
            else:
                live.remove_task(task)

    @contextmanager
    def _lines(self, description: str, total: int) -> Iterator[Advance]:
        started = last = self._clock()
        done = 0
        # When the first steps were done, and how many: what happens only once is in them, and says nothing of the others.
        first: tuple[float, int] | None = None

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal done, last, first
            done += steps
            now = self._clock()
            if first is None and done:
                first = now, done
            if now - last < _LINE_INTERVAL_S or done >= total:
                return
            last = now
            left = f", about {duration((now - first[0]) / (done - first[1]) * (total - done))} left" if first and done > first[1] else ""
            self.note(f"{description}: {done}/{total}, {duration(now - started)}{left}{f', {note}' if note else ''}")

        outcome = "stopped"
        try:
            yield advance
            outcome = "done"
        finally:
            elapsed = self._clock() - started
            # The lines of the outer task report a short task inside it; the error reports one that failed at once.
            if elapsed >= _LINE_INTERVAL_S or (self._depth == 1 and (done or outcome == "done")):
                self.note(f"{description}: {outcome} at {done}/{total} after {duration(elapsed)}")


def duration(seconds: float) -> str:
    """A span of time for people: "8 s", "2 min 05 s", "1 h 02 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def megabytes(size: float) -> str:
    """A size in bytes for people, in decimal MB: "0.03 MB", "12.3 MB", "5,140 MB"."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def to_json(value: Any) -> Any:
    """``value`` in terms of JSON; see `Output.data` for what is accepted. Raises TypeError for anything else."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "model_dump"):  # pydantic, without importing it
        return to_json(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch, without importing either
        return to_json(value.tolist())
    raise TypeError(f"no JSON for a {type(value).__name__}")


class _Patient(io.FileIO):
    """A stream whose reader may leave: what is written then is lost, and the command runs to its own end."""

    def __init__(self, number: int, forgiven: type[OSError]) -> None:
        super().__init__(number, "w", closefd=False)
        self._forgiven = forgiven

    def write(self, content: Any) -> int:
        """As ``FileIO``, but for what is forgiven."""
        try:
            return super().write(content)
        except self._forgiven:
            return memoryview(content).nbytes


def prepare_streams() -> None:
    """Give the process three open streams that print every letter somehow: what its caller has closed, or set to ASCII, ends no command."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    # Data that a full disk has not taken are missed; a log that it has not taken must not end hours of work.
    forgiven: tuple[type[OSError], type[OSError]] = (BrokenPipeError, OSError)
    for number, name, errors in zip((1, 2), ("stdout", "stderr"), forgiven, strict=True):
        before, file = getattr(sys, name), _Patient(number, errors)
        encoding = before.encoding if before else "utf-8"
        lines = name == "stderr" or file.isatty()
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(file), encoding, errors="replace", line_buffering=lines))


def give_up(stream: TextIO) -> None:
    """Let what could not be written go nowhere, or Python complains of it once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class _Name:
    """A name in a cell: where there is no room for it, its end."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_SHORTEST_NAME, len(self._name)), len(self._name)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width
        yield Text(self._name if len(self._name) <= room else f"…{self._name[len(self._name) + 1 - room :]}")


def _cell(text: str) -> Text | _Name:
    is_name = len(text) > _SHORTEST_NAME and not any(letter.isspace() for letter in text) and text.isascii()
    return _Name(text) if is_name and not _is_number(text) else Text(text)


class _Time(ProgressColumn):
    """A span of time with its name before it: "elapsed 0:01"; nothing where it is not known yet."""

    def __init__(self, name: str, seconds: Callable[[Task], float | None]) -> None:
        super().__init__()
        self._name, self._seconds = name, seconds

    def render(self, task: Task) -> Text:
        seconds = self._seconds(task)
        return Text("" if seconds is None else f"{self._name} {clock(seconds)}")


def clock(seconds: float) -> str:
    """A span of time as a clock has it: "0:01", "12:30", "1:02:03"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False)


def _line(console: Console, text: Text) -> None:
    # soft_wrap: a path that rich breaks in two can no longer be copied.
    console.print(text, soft_wrap=True)


def _live_display(console: Console) -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Time("elapsed", lambda task: task.finished_time if task.finished else task.elapsed),
        _Time("left", lambda task: task.time_remaining),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        redirect_stdout=False,  # data must stay on stdout
    )


def _is_number(cell: object) -> bool:
    text = str(cell).strip()
    return not text or text in {"-", "–", "—"} or text.lstrip("+-−").replace("−", "-")[:1].isdigit()
