"""Libraries that do not load, drivers that do not fit, and this machine."""

from __future__ import annotations

import json

import pytest

from dq_deploy.doctor import diagnose
from dq_deploy.doctor.diagnosis import graphics, working
from dq_deploy.doctor.probes import Probed, probe
from tests.command_line import Cli

VERSIONS = {"torch": "2.13.0", "onnxruntime-gpu": "1.31.1", "openvino": "2026.4.1"}
DRIVER = Probed("driver", {"code": 0, "cuda": "12.8", "gpus": 1})


def torch(built: str | None, *, cuda: bool) -> Probed:
    return Probed("torch", {"built_for_cuda": built, "cuda": cuda})


def runtime(used: str) -> Probed:
    return Probed("onnxruntime", {"providers": {"CPUExecutionProvider": "CPUExecutionProvider", "CUDAExecutionProvider": used}})


@pytest.mark.parametrize(("program", "error"), [
    ("raise ImportError('libcudart.so.13: not found')", "ImportError: libcudart.so.13: not found"),
    ("import os; os.kill(os.getpid(), 11)", "importing it kills the process (signal 11)"),
    ("import time; time.sleep(60)", "no answer in 1 s"),
    ("import sys; sys.exit(3)", "exit code 3"),
])  # fmt: skip
def test_a_library_that_does_not_load_says_why(program: str, error: str) -> None:
    assert probe("openvino", program, timeout_s=1 if "sleep" in program else 60).error == error


def test_a_library_that_answers_among_its_own_noise() -> None:
    assert probe("x", "print('hello'); found = {'devices': ['CPU']}").found == {"devices": ["CPU"]}


def test_what_does_not_load_is_wrong_with_the_command_that_installs_it_anew() -> None:
    (finding,) = working({"openvino": Probed("openvino", error="ImportError: x"), "torch": torch(None, cuda=False)}, VERSIONS.get)
    assert (finding.state, finding.name, finding.found) == ("wrong", "import openvino", "ImportError: x")
    assert finding.mend == "pip install --force-reinstall openvino==2026.4.1"


@pytest.mark.parametrize(("probed", "expected"), [
    ([Probed("driver", {"code": None})], [("absent", "none")]),
    ([Probed("driver", {"code": 100, "gpus": 0})], [("wrong", "CUDA error 100, 0 GPUs")]),
    ([Probed("driver", {"code": 0, "cuda": "12.8", "gpus": 0})], [("wrong", "CUDA error 0, 0 GPUs")]),
    ([DRIVER, torch("12.8", cuda=True), runtime("CUDAExecutionProvider")], [("ok", "for CUDA 12.8, 1 GPU(s)")]),
    ([DRIVER, torch("13.0", cuda=False)], [("ok", "for CUDA 12.8, 1 GPU(s)"), ("wrong", "built for CUDA 13.0")]),
    ([DRIVER, torch(None, cuda=False)], [("ok", "for CUDA 12.8, 1 GPU(s)"), ("note", "a build for the CPU")]),
    ([DRIVER, runtime("CPUExecutionProvider")], [("ok", "for CUDA 12.8, 1 GPU(s)"), ("wrong", "asked for CUDA, runs on the CPU")]),
    ([DRIVER, runtime("libcudnn.so.9: no such file")], [("ok", "for CUDA 12.8, 1 GPU(s)"), ("wrong", "libcudnn.so.9: no such file")]),
])  # fmt: skip
def test_the_gpu(probed: list[Probed], expected: list[tuple[str, str]]) -> None:
    found = list(graphics({p.module: p for p in probed}, VERSIONS.get))
    assert [(finding.state, finding.found) for finding in found] == expected
    assert all(finding.mend or finding.meaning for finding in found if finding.state == "wrong")


def test_a_missing_requirement_is_wrong() -> None:
    diagnosis = diagnose(version_of={}.get)  # nothing is installed, so nothing is imported
    assert not diagnosis
    assert {"torch", "onnx", "numpy"} <= {finding.name for finding in diagnosis.wrong}


def test_this_machine(cli: Cli) -> None:
    ended = cli("doctor", "--format", "json")
    found = json.loads(ended.out)
    assert (ended.code, found["passed"]) == (0, True), [f for f in found["findings"] if f["state"] == "wrong"]
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert by_name["[cpu]"]["state"] == "ok"
    assert by_name["torch"]["state"] == "ok"
    assert by_name["CPU"]["found"].startswith(found["machine"]["cpu"])
