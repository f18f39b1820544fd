"""``python -m tests.first_party``: what tests import from the repository's own modules and does not exist there.

mypy does not read the tests, and one that needs a GPU, or hours, would show it only where it runs.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from symtable import symtable

PACKAGES = ("benchmarks", "dq_deploy", "tests", "training")


def missing_imports(root: Path) -> Iterator[str]:
    """What ``from module import name`` in the tests below ``root`` does not find, each with its place."""
    files = {_module(path.relative_to(root)): path for package in PACKAGES for path in (root / package).rglob("*.py")}
    folders = {name.rpartition(".")[0] for name in files}
    names = {module: _names(path) for module, path in files.items()}
    for module, path in sorted(files.items()):
        if module.partition(".")[0] != "tests":
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.ImportFrom) or str(node.module).partition(".")[0] not in PACKAGES:
                continue
            for wanted in (alias.name for alias in node.names):
                inside = f"{node.module}.{wanted}"
                if wanted not in names.get(str(node.module), ()) and inside not in files and inside not in folders:
                    yield f"{path.relative_to(root)}:{node.lineno}: {node.module} has no {wanted}"


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _names(path: Path) -> set[str]:
    """Names that a module binds."""
    symbols = symtable(path.read_text("utf-8"), str(path), "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


if __name__ == "__main__":
    found = list(missing_imports(Path(__file__).parents[1]))
    sys.exit("\n".join(found) if found else None)
