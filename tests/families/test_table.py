"""docs/families.md and the catalogue are the same list."""

from __future__ import annotations

from tests.families.catalogue import FAMILIES, GROUPS
from tests.families.drive import Row
from tests.families.table import BEGIN, END, NOT_RUN, PAGE, names_in, table


def test_the_page_lists_exactly_the_catalogue() -> None:
    assert names_in(PAGE.read_text()) == list(FAMILIES)


def test_no_name_twice() -> None:
    names = [family.name for families in GROUPS.values() for family in families]
    assert len(names) == len(set(names))


def test_a_refused_family_is_refused_in_the_table() -> None:
    lines = {line.removeprefix("| ").split(" |")[0]: line for line in PAGE.read_text().splitlines()}
    for name, family in FAMILIES.items():
        assert ("refused by" in lines[name]) == (family.refused is not None), name
        if family.refused:
            assert family.refused.why in lines[name]
            assert f"`{family.refused.stage}`" in lines[name]


def test_every_family_has_been_run_and_went_or_is_refused_as_it_should() -> None:
    page = PAGE.read_text()
    assert NOT_RUN not in page
    assert "failed:" not in page
    assert "fails:" not in page


def test_a_message_is_one_line_of_the_table() -> None:
    name = next(name for name, family in FAMILIES.items() if not family.refused)
    long = Row(name, "quantize", "ArtifactError", "one | two " + 50 * "more " + "\n" + "a traceback")
    failing = Row(name, layers=3, worst_snr_db=1.0, failures=["layer x\nis wrong"])
    for row, words in ((long, "`quantize` failed: one \\| two more"), (failing, "`check` fails: layer x |")):
        (line,) = (line for line in table({name: row}).splitlines() if line.startswith(f"| {name} |"))
        assert words in line
        assert "traceback" not in line
        assert len(line) < 300


def test_the_table_of_the_page_has_rows_alone() -> None:
    page = PAGE.read_text()
    lines = page[page.index(BEGIN) + len(BEGIN) : page.index(END)].splitlines()
    assert [line for line in lines if line and not line.startswith(("| ", "|---", "### "))] == []
