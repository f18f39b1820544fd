"""Which code a figure was measured with: a hash that formatting, comments and docstrings do not change."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import dq_deploy

QUANTIZATION = Path(dq_deploy.__file__).parent / "quantization"
PEERS = Path(__file__).with_name("peers.py")


def code_sha256(files: Iterable[Path]) -> str:
    """Hash over the syntax trees of Python files, by file name, without their docstrings and imports: a file may move."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: (path.name, path)):
        digest.update(f"{path.name}\n{ast.dump(_stripped(ast.parse(path.read_bytes())))}\n".encode())
    return digest.hexdigest()


@functools.cache
def quantization_sha256() -> str:
    """Hash of ``dq_deploy/quantization`` as it was when first asked for, which is before a cell starts."""
    files = (path for path in QUANTIZATION.rglob("*.py") if path.parent.name != "running")  # what surrounds a run changes no figure
    return code_sha256(files)


@functools.cache
def peers_sha256() -> str:
    """Hash of what drives the outside tools."""
    return code_sha256([PEERS])


def _stripped(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # A constant that nobody reads: a docstring, or the text below an attribute.
            node.body = [n for n in node.body if not _is_text(n) and not isinstance(n, ast.Import | ast.ImportFrom)] or [ast.Pass()]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
