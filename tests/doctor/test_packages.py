"""What is installed against what is asked for."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from packaging.requirements import Requirement

from dq_deploy.doctor.finding import Finding
from dq_deploy.doctor.packages import extras, fits, package_findings
from dq_deploy.versions import requirements

REQUIREMENTS = [Requirement(line) for line in (
    "torch>=2.6",
    "numpy>=1.26",
    'onnxruntime>=1.20 ; extra == "cpu"',
    'onnxruntime-gpu>=1.20 ; extra == "gpu"',
    'polygraphy>=0.49.26 ; extra == "tensorrt-rtx"',  # an installation lists them by name: the main one is not the first
    'tensorrt-rtx>=1.1 ; extra == "tensorrt-rtx"',
    'ruff>=0.6 ; extra == "dev"',
)]  # fmt: skip
RTX = 'pip install "polygraphy>=0.49.26" "tensorrt-rtx>=1.1"'
GOOD = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "onnxruntime": "1.31.1"}


def findings(installed: Mapping[str, str]) -> dict[str, Finding]:
    return {finding.name: finding for finding in package_findings(REQUIREMENTS, installed.get)}


def test_what_fits_is_ok_and_what_is_optional_is_merely_absent() -> None:
    found = findings(GOOD)
    assert {name: finding.state for name, finding in found.items()} == {
        "torch": "ok", "numpy": "ok", "[cpu]": "ok", "[gpu]": "absent", "[tensorrt-rtx]": "absent",
    }  # fmt: skip
    assert found["[tensorrt-rtx]"].mend == RTX
    # Never advise to install the second of two that exclude each other.
    assert found["[gpu]"].mend is None


@pytest.mark.parametrize(("installed", "name", "words", "mend"), [
    ({**GOOD, "torch": "2.5.1"}, "torch", "2.5.1", 'pip install "torch>=2.6"'),
    ({"numpy": "2.4.6"}, "torch", "not installed", 'pip install "torch>=2.6"'),
    ({**GOOD, "torch": "from a mysterious source"}, "torch", "mysterious", 'pip install "torch>=2.6"'),
    ({**GOOD, "onnxruntime": "1.17.0"}, "[cpu]", "onnxruntime 1.17.0 (needs >=1.20)", 'pip install "onnxruntime>=1.20"'),
    ({**GOOD, "tensorrt-rtx": "1.7.1.116"}, "[tensorrt-rtx]", "without polygraphy", RTX),
    ({**GOOD, "tensorrt-rtx": "1.7", "polygraphy": "0.49"}, "[tensorrt-rtx]", "polygraphy 0.49", RTX),
    ({**GOOD, "onnxruntime-gpu": "1.31"}, "onnxruntime and onnxruntime-gpu", "onnxruntime-gpu 1.31", "pip uninstall -y onnxruntime onnx"),
])  # fmt: skip
def test_what_is_wrong_says_how_to_fix_it(installed: Mapping[str, str], name: str, words: str, mend: str) -> None:
    finding = findings(installed)[name]
    assert finding.state == "wrong"
    assert words in finding.found
    assert finding.mend is not None
    assert finding.mend.startswith(mend)


def test_what_another_extra_brought_does_not_make_an_absent_one_wrong() -> None:
    found = findings({**GOOD, "polygraphy": "0.53.6"})
    assert (found["[tensorrt-rtx]"].state, found["[tensorrt-rtx]"].found) == ("absent", "tensorrt-rtx is not installed")


def test_prereleases_and_local_builds_count() -> None:
    assert fits(Requirement("torch>=2.6"), "2.13.0+cu130")
    assert fits(Requirement("torch>=2.6"), "2.14.0a0+git1234")
    assert not fits(Requirement("torch>=2.6"), "2.5.1+cpu")


def test_our_own_requirements_name_every_extra_of_a_user() -> None:
    found = {finding.name for finding in package_findings(requirements(), {}.get)}
    assert {f"[{extra}]" for extra in extras()} <= found
    assert {"torch", "onnx", "diffusers"} <= found
    assert not {"ruff", "pytest", "nncf"} & found
