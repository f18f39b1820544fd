"""The table of docs/families.md: ``python -m tests.families.table ROWS`` writes it anew from what ``--family-rows`` left behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.families.catalogue import FAMILIES, GROUPS
from tests.families.drive import Row, read_row
from tests.families.family import Family, network_name

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- families: begin, written by make families -->", "<!-- families: end -->"
NOT_RUN = "not run"
_LONGEST = 120
_SHOWN = 0.0005  # shares of float work beside the sample: smaller ones are 0.0%
_HEAD = (
    "| family | network | layers in INT8 | float: reads the sample | worst SNR, dB | note |",
    "|---|---|---|---|---|---|",
)


def table(rows: Mapping[str, Row]) -> str:
    """Markdown of every family of the catalogue, by groups; one without a row was not run."""
    lines: list[str] = []
    for group, families in GROUPS.items():
        lines += [f"### {group}", "", *_HEAD, *(_line(family, rows.get(family.name)) for family in families), ""]
    return "\n".join(lines)


def _line(family: Family, row: Row | None) -> str:
    head = f"| {family.name} | {network_name(family.make())} |"
    if family.refused:
        return f"{head} – | – | – | refused by `{family.refused.stage}`: {family.refused.why} |"
    if row is None:
        return f"{head} – | – | – | {NOT_RUN} |"
    if row.error:
        return f"{head} – | – | – | `{row.stage}` failed: {_one_line(row.message)} |"
    layers = str(row.layers) if row.int8 == row.layers else f"{row.int8} of {row.layers}"
    figures = [layers, f"{row.sample_share:.1%}", f"{row.worst_snr_db:.1f}"]
    notes = [family.why, *([f"`check` fails: {_one_line(row.failures[0])}"] if row.failures else [])]
    if row.beside_the_sample >= _SHOWN:
        notes.append(f"{row.beside_the_sample:.1%} more in float")
    return f"{head} {' | '.join(figures)} | {'; '.join(filter(None, notes))} |"


def _one_line(message: str) -> str:
    """The beginning of a message, as a cell of the table can have it; the whole of it is in the row's file."""
    first = message.partition("\n")[0].replace("|", "\\|")
    return first if len(first) <= _LONGEST else f"{first[:_LONGEST].rsplit(' ', 1)[0]} …"


def names_in(page: str) -> list[str]:
    """The families that the page's table has, in its order."""
    return list(_names(page[page.index(BEGIN) : page.index(END)].splitlines()))


def _names(lines: list[str]) -> Iterator[str]:
    for line in lines:
        name = line.removeprefix("| ").split(" |")[0]
        if line.startswith("| ") and name != "family":
            yield name


def write(rows: Mapping[str, Row]) -> None:
    """Put the table between the page's markers."""
    page = PAGE.read_text()
    before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    PAGE.write_text(f"{before}\n\n{table(rows)}\n{after}")


if __name__ == "__main__":
    found = {row.name: row for row in map(read_row, sorted(Path(sys.argv[1]).glob("*.json")))}
    write(found)
    if missing := [name for name, family in FAMILIES.items() if name not in found and not family.refused]:
        sys.exit(f"no row for {', '.join(missing)}")
