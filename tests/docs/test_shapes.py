"""The docstring of every public function that takes or gives a tensor says of what shape it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import dq_deploy

PACKAGE = Path(dq_deploy.__file__).parent
TENSOR = re.compile(r"\b(Tensor|ndarray|Array|Images)\b")
SHAPE = re.compile(r"(?<![\w\"'])\[[^\[\]]*\]|any shape|^As ``\w+`` says|^As the protocol says|^See ``", re.MULTILINE)


def public_functions(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef):
                yield from public_functions(node)
            else:
                yield node


def without_shape(source: str) -> list[str]:
    found = []
    for function in public_functions(ast.parse(source)):
        arguments = function.args
        annotations = [a.annotation for a in [*arguments.args, *arguments.kwonlyargs]] + [function.returns]
        of_tensors = any(TENSOR.search(ast.unparse(each)) for each in annotations if each is not None)
        if of_tensors and not SHAPE.search(ast.get_docstring(function) or ""):
            found.append(function.name)
    return found


def test_shapes_are_said() -> None:
    found = {str(path.relative_to(PACKAGE)): names for path in PACKAGE.rglob("*.py") if (names := without_shape(path.read_text("utf-8")))}
    assert found == {}


def test_a_docstring_without_a_shape_is_found() -> None:
    silent = 'class A:\n    def f(self, x: torch.Tensor) -> None:\n        """Take ``x``: list[int]."""\n'
    assert without_shape(silent) == ["f"]
    assert without_shape(silent.replace("``x``", "``x`` [N, C]")) == []
    assert without_shape(silent.replace("torch.Tensor", "int")) == []
