"""A terminal that cannot print a letter, a reader that leaves, a closed stream, a home that is not there: none ends a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dq_deploy.commands import COMMANDS
from tests.flow import Flow

MAIN = f"{sys.executable} -c 'from dq_deploy.cli import main; main()'"
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CODEPAGE = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
NAMES = sorted(str(command.name) for command in COMMANDS)


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, check=False, timeout=300, env={**os.environ, **environment},
        encoding="utf-8", errors="backslashreplace",
    )  # fmt: skip


def in_one_process(commands: list[list[str]], **environment: str) -> subprocess.CompletedProcess[str]:
    """Many commands, each as ``main`` runs it, without starting Python anew."""
    program = f"""
import sys
from dq_deploy import cli
from dq_deploy.console import prepare_streams
prepare_streams()
codes = [cli.run(command) for command in {commands!a}]
print("codes", codes, file=sys.__stderr__)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=300, env={**os.environ, **environment})


@pytest.mark.parametrize("environment", [ASCII, pytest.param(CODEPAGE, marks=pytest.mark.nightly)], ids=["ascii", "cp1252"])
def test_letters_that_a_terminal_has_not(flow: Flow, environment: dict[str, str], tmp_path: Path) -> None:
    artefacts = [str(flow.checkpoint), str(flow.bundles["qdq"]), str(flow.bundles["onnxruntime"])]
    odd = tmp_path / "é–\udcff-folder"
    commands = [
        *([name, "--help"] for name in NAMES),
        *(["inspect", path, *more] for path in artefacts for more in ([], ["--format", "json"])),
        ["model-card", artefacts[1]],
        ["push", artefacts[1], "some/one", "--dry-run"],
    ]
    done = in_one_process(commands, **environment)
    assert b"Traceback" not in done.stderr, done.stderr
    codes = json.loads(done.stderr.rsplit(b"codes ", 1)[1])
    assert [code for code in codes if code not in (0, 4)] == [], dict(zip(map(tuple, commands), codes, strict=True))
    missing = in_one_process([["inspect", os.fsdecode(os.fsencode(odd))]], **environment)
    assert b"Traceback" not in missing.stderr
    # Where file names are ASCII as well, the system cannot even ask for it.
    code = missing.stderr.rstrip()[-3:]
    assert code == b"[2]" or (code == b"[4]" and b"the encoding ascii of this system cannot write " in missing.stderr), missing.stderr


@pytest.mark.parametrize(
    "line",
    ["{} | true", "{} | head -c 1", "{} 2>&1 | true", "{} >&-", "{} 2>&-", "{} >&- 2>&- <&-", "{} 2>/dev/full"],
)
def test_nobody_listens(flow: Flow, line: str) -> None:
    commands = [f"inspect {flow.checkpoint} --format json", f"inspect {flow.checkpoint}", "--help"]
    for command in commands if "| true" in line else commands[:1]:
        done = shell(f"set -o pipefail; {line.format(f'{MAIN} {command}')}")
        assert done.returncode == 0, (command, done.stderr)
        assert done.stderr == ""


def test_work_is_done_though_nobody_listens(flow: Flow, tmp_path: Path) -> None:
    card = f"model-card {flow.checkpoint} -o {tmp_path / 'card.md'} --format json"
    done = shell(f"set -o pipefail; {MAIN} {card} 2>&1 | true")
    assert done.returncode == 0
    assert (tmp_path / "card.md").exists()
    bad = shell(f"{MAIN} inspect {tmp_path / 'nothing'} >&- 2>&-")
    assert bad.returncode == 2


def test_a_full_disk_behind_stdout_is_said(flow: Flow) -> None:
    for more in ("", "--format json"):
        done = shell(f"{MAIN} inspect {flow.checkpoint} {more} > /dev/full")
        assert done.returncode == 5, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("error: ") == 1


def test_a_home_that_is_not_there(flow: Flow, tmp_path: Path) -> None:
    homes = dict.fromkeys(("HOME", "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "TORCH_HOME"), "/dev/null/home")
    commands = [
        ["inspect", str(flow.checkpoint)],
        ["report", str(flow.checkpoint), "-o", str(tmp_path / "r.html"), "--no-samples", "--no-layer-error", "--no-check"],
        ["quantize", "some/model", "-o", str(tmp_path / "c")],
    ]
    program = f"from dq_deploy import cli; print('codes', [cli.run(c) for c in {commands!r}])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**os.environ, **homes, "HF_HUB_OFFLINE": "1"}
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "codes [0, 0, 4]" in done.stdout, done.stderr
