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
    """Hash over the syntax trees of Python files, by file name, without their docstrings."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}\n{ast.dump(_without_docstrings(ast.parse(path.read_bytes())))}\n".encode())
    return digest.hexdigest()


@functools.cache
def quantization_sha256() -> str:
    """Hash of ``dq_deploy/quantization`` as it was when first asked for, which is before a cell starts."""
    return code_sha256(QUANTIZATION.glob("*.py"))


@functools.cache
def peers_sha256() -> str:
    """Hash of what drives the outside tools."""
    return code_sha256([PEERS])


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # A constant that nobody reads: a docstring, or the text below an attribute.
            node.body = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))] or [ast.Pass()]
    return tree
