"""Which engine a bundle runs on when nobody says."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.engines import choice, openvino
from dq_deploy.engines.choice import best_runtime, make_runner
from tests.flow import Flow, altered_manifest


def with_bits(flow: Flow, path: Path, weights: int, activations: int) -> Artifact:
    bundle = flow.bundle("tensorrt")
    return altered_manifest(
        bundle, path, quantization={**(bundle.manifest.quantization or {}), "weight_bits": weights, "activation_bits": activations}
    )


@pytest.mark.parametrize(
    ("weights", "activations", "saturates", "expected"),
    [
        (8, 8, False, "openvino"),
        (8, 8, True, "openvino"),
        (6, 6, True, "openvino"),
        (4, 16, False, "onnxruntime"),  # weights alone: nothing to multiply as integers
    ],
)
def test_openvino_where_it_multiplies_the_integers(flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: int,
                                                   activations: int, saturates: bool, expected: str) -> None:  # fmt: skip
    monkeypatch.setattr(openvino, "int8_saturates", lambda: saturates)
    bundle = with_bits(flow, tmp_path / "bundle", weights, activations)
    assert best_runtime(bundle) == expected
    runner = make_runner(bundle)
    assert runner.name == expected
    if expected == "openvino":  # in float where its INT8 kernels are not exact
        assert runner.details["integer"] is (weights <= 6 or not saturates)


def test_onnxruntime_for_everything_else(flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "int8_saturates", lambda: False)
    assert best_runtime(flow.bundle("onnxruntime")) == "onnxruntime"
    assert best_runtime(flow.bundle("float")) == "onnxruntime"
    monkeypatch.setattr(choice, "find_spec", lambda _: None)
    assert best_runtime(flow.bundle("tensorrt")) == "onnxruntime"


def test_an_option_of_one_engine_chooses_it(flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "int8_saturates", lambda: False)
    bundle = with_bits(flow, tmp_path / "bundle", 8, 8)
    assert make_runner(bundle).name == "openvino"
    assert make_runner(bundle, optimized=False).name == "onnxruntime"
    assert make_runner(flow.bundle("float"), precision="f32").name == "openvino"
