"""The recorded behaviour of the engines still holds, pattern by pattern, and the lint flags exactly what they spoil.

TensorRT-RTX is asked about the patterns of its own target only: it refuses the others' uint8 codes, and each question takes a second.
"""

from __future__ import annotations

import importlib.util
import re

import onnx
import pytest

from benchmarks.patterns.catalogue import PATTERNS, Pattern
from benchmarks.patterns.engines import ENGINES, Behaviour
from benchmarks.patterns.results import PAGE, Recorded, installed, instructions, load, page
from benchmarks.patterns.rules_page import RULES_PAGE, rules_page
from dq_deploy.exporters.lint import RULES
from tests.nightly import mostly_nightly

_MODULES = {"TensorRT-RTX": "tensorrt_rtx", "OpenVINO": "openvino", "ONNX Runtime": "onnxruntime"}
SEVERITY = {rule.id: rule.severity for rule in RULES}
# Engines build these and compute nonsense from them; only their values are wrong, and no engine looks at those.
BUILT_NONSENSE = {"subnormal-scale", "zero-scale", "non-finite-scale", "code-type", "fp8-half-scale", "fp8-unsaturated"}
# Another engine, or the standard, refuses what TensorRT-RTX builds.
NOT_ONNX = {"int4-opset", "fp8-opset", "fp4-opset", "invalid-onnx"}
# ONNX Runtime refuses these with the option that keeps sums exact on a CPU without VNNI.
REFUSED_ELSEWHERE = {"shared-weight"}


@pytest.fixture(scope="session")
def recorded() -> Recorded:
    return load()


def holds(engine: str, pattern: Pattern, recorded: Recorded) -> None:
    if importlib.util.find_spec(_MODULES[engine]) is None:
        pytest.skip(f"{engine} is not installed")
    if installed()[engine] != recorded.versions[engine]:
        pytest.skip(f"recorded with {engine} {recorded.versions[engine]}: run python -m benchmarks.patterns with this version")
    found = ENGINES[engine](pattern.build(), pattern.capability)
    expected = recorded.behaviours[pattern.name][engine].outcome
    if found.outcome != expected and engine != "TensorRT-RTX" and instructions() != recorded.instructions:
        pytest.skip(f"recorded on a CPU with {', '.join(recorded.instructions)}, and {engine} chooses kernels by that")
    assert found.outcome == expected, found.detail


OWN = [pattern.name for pattern in PATTERNS.values() if pattern.target == "qdq"]
# One of each outcome: int8 with a table, int4, fp8, fp4, float, refused, crash.
ALWAYS = ("conv-per-timestep", "matmul-int4-fp16", "matmul-fp8", "matmul-fp4", "matmul-computed-scale", "zero-point", "conv-computed-scale")


@pytest.mark.parametrize("name", mostly_nightly(OWN, *ALWAYS))
def test_tensorrt_rtx(name: str, recorded: Recorded) -> None:
    holds("TensorRT-RTX", PATTERNS[name], recorded)


def test_every_outcome_is_asked_for_always(recorded: Recorded) -> None:
    outcomes = {name: recorded.behaviours[name]["TensorRT-RTX"].outcome for name in OWN}
    assert {outcomes[name] for name in ALWAYS} == set(outcomes.values())


@pytest.mark.parametrize("engine", ["OpenVINO", "ONNX Runtime"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=list(PATTERNS))
def test_engines_on_a_cpu(pattern: Pattern, engine: str, recorded: Recorded) -> None:
    holds(engine, pattern, recorded)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=list(PATTERNS))
def test_the_lint_agrees_with_the_engine(pattern: Pattern, recorded: Recorded) -> None:
    """An error where the target's engine refuses, crashes or leaves INT8; none where it does what is wanted."""
    engine = "TensorRT-RTX" if pattern.target == "qdq" else "ONNX Runtime"
    outcome = recorded.behaviours[pattern.name][engine].outcome
    errors = {name for name in pattern.lint if SEVERITY[name] == "error"}
    warnings = set(pattern.lint) - errors
    if outcome in ("refused", "crash"):
        assert errors
    elif outcome == "float":
        assert errors or warnings == {"float-activation"} if pattern.target == "qdq" else warnings
    elif outcome == "int4":
        assert pattern.float_wanted
        assert not pattern.lint
    else:
        assert errors <= BUILT_NONSENSE | NOT_ONNX | REFUSED_ELSEWHERE
        assert warnings <= {"convolution-integer", "codebook-unsigned"}  # slow, and large


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=list(PATTERNS))
def test_the_graphs_are_valid_onnx_where_they_mean_to_be(pattern: Pattern) -> None:
    model = pattern.build()
    if pattern.valid:
        onnx.checker.check_model(model, full_check=True)
    else:
        with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
            onnx.checker.check_model(model, full_check=True)


def test_the_page_is_what_is_recorded(recorded: Recorded) -> None:
    assert set(recorded.behaviours) == set(PATTERNS)
    assert PAGE.read_text() == page(recorded), "run: python -m benchmarks.patterns --page-only"


def test_docstrings_of_rules_name_patterns_that_exist() -> None:
    named = {name for rule in RULES for name in re.findall(r"``([a-z0-9]+(?:-[a-z0-9]+)+)``", rule.find.__doc__ or "")}
    assert len(named) > 20
    assert named <= set(PATTERNS)


def test_the_page_of_rules_is_what_the_rules_say() -> None:
    assert RULES_PAGE.read_text() == rules_page(), "run: python -m benchmarks.patterns --page-only"


def test_what_the_design_rests_on(recorded: Recorded) -> None:
    """The rows that decided how the exporters write their graphs, spelled out: a new recording must not change them unnoticed."""
    rtx = {name: found["TensorRT-RTX"] for name, found in recorded.behaviours.items()}
    assert rtx["conv-computed-scale"] == Behaviour(outcome="crash", detail="SIGSEGV")
    assert rtx["matmul-computed-scale"].outcome == "float"
    wanted = ("conv-asymmetric", "conv-dilated", "matmul-per-timestep", "attention-products", "matmul-int4-int8", "conv-int4-requantized")
    for name in wanted:
        assert rtx[name].outcome == "int8", name
        assert recorded.behaviours[name]["OpenVINO"].outcome in ("int8", "int4"), name
    for name in ("matmul-int4-int8", "conv-int4-requantized"):
        assert rtx[name].detail.endswith("weights INT4 in memory")
    assert rtx["matmul-shared-quantizer"].detail.startswith("1 of 3 kernels")
    for name in ("conv-int4-int8", "conv-int4-requantized-uncast", "matmul-int4-blocks-int8", "matmul-int4-cast", "zero-point"):
        assert rtx[name].outcome == "refused", name
