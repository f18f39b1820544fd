"""The documentation's site, built once."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.shared import made_once

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``make docs`` makes; it is only read."""
    missing = [name for name in ("latex2mathml", "material", "mkdocs", "mkdocstrings") if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}: pip install 'dq-deploy[docs]'")

    def build(path: Path) -> None:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "site", build)
