"""RELIABILITY.md names a test for each fault: every one of them must be there."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent / "RELIABILITY.md"


def named(page: str) -> list[tuple[str, str | None]]:
    """(file below tests/, test in it or None) in the last column of the tables; a test without a file is in the file named before it."""
    found: list[tuple[str, str | None]] = []
    for row in (line for line in page.splitlines() if line.startswith("|")):
        for file, test in re.findall(r"([\w/]+\.py)|`(test_\w+)`", row.split("|")[-2]):
            found.append((file or found[-1][0], test or None))
    return found


def test_every_test_that_the_page_names_is_there() -> None:
    references = named(PAGE.read_text())
    assert len(references) > 50
    missing = [
        f"{file} {test or ''}"
        for file, test in references
        if not (path := PAGE.parent / file).is_file() or (test and f"def {test}(" not in path.read_text())
    ]
    assert missing == []


def test_a_test_that_is_gone_is_noticed() -> None:
    assert named("| fault | 3 | a/test_a.py `test_x`, `test_y`, test_b.py |\ntext test_c.py") == [
        ("a/test_a.py", None), ("a/test_a.py", "test_x"), ("a/test_a.py", "test_y"), ("test_b.py", None),
    ]  # fmt: skip
