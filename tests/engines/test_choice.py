"""Which engine a bundle runs on when nobody says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.loading.choice import best_runtime, make_runner
from dq_deploy.engines.openvino import int8_kernels
from dq_deploy.engines.openvino.int8_kernels import int8_without_vnni
from tests.flow import Flow, altered_manifest


def with_bits(flow: Flow, path: Path, weights: int, activations: int, *, wide: float = 0.0) -> Artifact:
    """The qdq bundle as if its layers had these bits, and the heaviest ones, up to a share ``wide`` of the work, 8 and 8.

    The preset stays W8A8: nothing is to be read from it.
    """
    bundle = flow.bundle("qdq")
    layers = [dict(layer) for layer in bundle.manifest.details["layers"]]
    left = wide * sum(layer["macs"] for layer in layers)
    for layer in sorted(layers, key=lambda layer: layer["macs"]):
        left -= layer["macs"]
        w, a = (8, 8) if left >= 0 else (weights, activations)
        layer.update({"activation_bits": a} | ({"weight_bits": w} if layer.get("weight_bits") else {}))
    return altered_manifest(bundle, path, details={**bundle.manifest.details, "layers": layers})


@pytest.mark.parametrize(
    ("weights", "activations", "wide", "serves"),
    [(8, 8, 0, False), (7, 8, 0, False), (6, 6, 0, True), (4, 8, 0, True), (4, 8, 0.3, False), (4, 8, 0.001, True), (4, 16, 0, False)],
)
def test_without_vnni_int8_is_for_layers_with_narrow_weights(flow: Flow, tmp_path: Path, weights: int, activations: int, wide: float,
                                                             serves: bool) -> None:  # fmt: skip
    """W4A8 whose layers were raised to 8 bits by a budget is not W4A8 for kernels that saturate."""
    assert int8_without_vnni(with_bits(flow, tmp_path / "bundle", weights, activations, wide=wide)) is serves


def test_layers_left_in_float_count_as_float(flow: Flow, tmp_path: Path) -> None:
    bundle = with_bits(flow, tmp_path / "bundle", 8, 8)
    work = sum(layer["macs"] for layer in bundle.manifest.details["layers"])
    for share, expected in ((0.5, "openvino"), (2.0, "onnxruntime")):
        floats = [{"name": "x", "op": "conv2d", "macs": round(share * work), "reason": "kept"}]
        changed = altered_manifest(bundle, tmp_path / str(share), details={**bundle.manifest.details, "float_layers": floats})
        assert best_runtime(changed) == expected


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
    monkeypatch.setattr(int8_kernels, "int8_saturates", lambda: saturates)
    bundle = with_bits(flow, tmp_path / "bundle", weights, activations)
    assert best_runtime(bundle) == expected
    runner = make_runner(bundle)
    assert runner.name == expected
    if expected == "openvino":  # in float where its INT8 kernels are not exact
        assert runner.details["integer"] is (weights <= 6 or not saturates)


def test_onnxruntime_for_everything_else(flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_kernels, "int8_saturates", lambda: False)
    assert best_runtime(flow.bundle("onnxruntime")) == "onnxruntime"
    assert best_runtime(flow.bundle("float")) == "onnxruntime"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert best_runtime(flow.bundle("qdq")) == "onnxruntime"


def test_an_option_of_one_engine_chooses_it(flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_kernels, "int8_saturates", lambda: False)
    bundle = with_bits(flow, tmp_path / "bundle", 8, 8)
    assert make_runner(bundle).name == "openvino"
    assert make_runner(bundle, optimized=False).name == "onnxruntime"
    assert make_runner(flow.bundle("float"), precision="f32").name == "openvino"
