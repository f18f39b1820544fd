"""Imports of what does not exist are found in the tests, which mypy does not read."""

from __future__ import annotations

from pathlib import Path

from tests.first_party import missing_imports


def test_what_is_imported_and_does_not_exist_is_named_with_its_place(tmp_path: Path) -> None:
    for name, text in {
        "dq_deploy/__init__.py": "",
        "dq_deploy/errors.py": "from os import path\n\nCODES = (1, 2)\n\nclass UsageError(Exception): ...\n\ndef hint(): inner = 1\n",
        "tests/test_one.py": (
            "from dq_deploy import errors\nfrom dq_deploy.errors import CODES, UsageError, hint, path\nfrom tests.one import THING\n"
            "def test():\n    from dq_deploy.errors import does_not_exist, inner\n    from dq_deploy.gone import anything\n"
        ),
    }.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert list(missing_imports(tmp_path)) == [
        "tests/test_one.py:3: tests.one has no THING",
        "tests/test_one.py:5: dq_deploy.errors has no does_not_exist",
        "tests/test_one.py:5: dq_deploy.errors has no inner",
        "tests/test_one.py:6: dq_deploy.gone has no anything",
    ]
