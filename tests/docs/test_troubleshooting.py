"""Every message that docs/troubleshooting.md quotes is one that the code can print."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import dq_deploy

ROOT = Path(__file__).parents[2]
QUOTED = re.findall(r"^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)


@cache
def texts() -> list[str]:
    """Every string of the package; what an f-string puts in is a "…"."""
    found = []
    for path in Path(dq_deploy.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def occurs(quoted: str) -> bool:
    """Whether some text has the quoted one's fixed parts, in order, from its beginning to its end."""
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in quoted.split("…")), re.DOTALL)
    return any(pattern.fullmatch(text.strip()) for text in texts())


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_code_has_the_message(quoted: str) -> None:
    assert max(len(part.strip()) for part in quoted.split("…")) >= 10, "too little of it is fixed to be found again"
    assert occurs(quoted)


def test_a_message_that_nobody_prints_is_found_out() -> None:
    assert not occurs("output … exists already")
    assert not occurs("output … already")
    assert occurs("output … already exists")


def test_none_is_quoted_twice() -> None:
    assert len(set(QUOTED)) == len(QUOTED) >= 37
