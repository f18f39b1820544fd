"""Changes of the code that were shown to change no figure: cells that the older code measured stand.

The hash of ``code_hash`` sees every change of the code that quantizes, also one that only makes it faster or tidier. Measuring a few cells
again with the new code and finding every bit as it was is cheaper than measuring all of them again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dq_deploy.errors import ArtifactError

from .results import read_result, write_text
from .settings import Cell

FILE = "confirmed.json"


class Confirmation(BaseModel):
    """``new`` and ``old`` are hashes of code; ``cells`` came out of both with the same bits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    old: str
    new: str
    measured: str
    cells: tuple[Cell, ...]


class SameCode:
    """Whether two hashes are of code that measures the same figures, by way of any number of confirmations."""

    def __init__(self, confirmations: Iterable[Confirmation] = ()) -> None:
        self._next: dict[str, set[str]] = defaultdict(set)
        for one in confirmations:
            self._next[one.old].add(one.new)
            self._next[one.new].add(one.old)

    def __call__(self, first: str, second: str) -> bool:
        """Whether figures of the first are figures of the second."""
        seen, waiting = {first}, [first]
        while waiting:
            fresh = self._next.get(waiting.pop(), set()) - seen
            seen |= fresh
            waiting += fresh
        return second in seen


def read_confirmations(results: Path) -> list[Confirmation]:
    """What was confirmed in a folder of results. Raises ArtifactError for a file that is none of ours."""
    file = results / FILE
    if not file.is_file():
        return []
    try:
        return [Confirmation.model_validate(one) for one in json.loads(file.read_bytes())]
    except (ValidationError, ValueError, TypeError) as error:
        raise ArtifactError(f"{file} is not a list of confirmations: {error}", "restore it from the repository") from None


def same_code(results: Path) -> SameCode:
    """What the confirmations of a folder of results say."""
    return SameCode(read_confirmations(results))


def different_figures(cell: Cell, results: Path, again: Path) -> str:
    """Which figures of a cell's grid are not the same to the last bit in two folders of results; empty where all are."""
    before, after = _figures(cell, results), _figures(cell, again)
    if not before or not after:
        return "it has no figures to compare"
    changed = sorted(name for name in before if before[name] != after[name])
    return f"other figures ({', '.join(changed)}): nothing was confirmed, and --rerun-stale measures for good" if changed else ""


def _figures(cell: Cell, results: Path) -> dict[str, Any]:
    found = read_result(cell.result_file(results))
    return found.grid.model_dump(exclude={"wall_s"}) if found and found.grid else {}


def confirm(cells: Sequence[Cell], results: Path, again: Path) -> list[Confirmation]:
    """Write down in ``results`` that the code of ``again`` measures what the older code did, for each older code among the cells."""
    by_code: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        old, new = read_result(cell.result_file(results)), read_result(cell.result_file(again))
        if old and new:
            by_code[old.code_sha256, new.code_sha256].append(cell)
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    found = [Confirmation(old=old, new=new, measured=today, cells=tuple(kept)) for (old, new), kept in sorted(by_code.items())]
    everything = [*read_confirmations(results), *found]
    write_text(results / FILE, "[\n" + ",\n".join(one.model_dump_json() for one in everything) + "\n]")
    return found
