"""Bits are those of the layers, by how much of the work they do, and not those of the preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dq_deploy.artifacts import Artifact, Manifest
from dq_deploy.artifacts.details import BitsOfWork, FloatLayer, QuantizedLayer
from dq_deploy.artifacts.layer_bits import bits_in_words, bits_label, fraction_of_work, integer_activations, layer_bits, wider_weights

PRESET = {"weight_bits": 4, "activation_bits": 8}
GRAPH: dict[str, Any] = {
    "target": "qdq", "dtype": "fp32", "float": False, "sample_shape": [1], "component": None, "pipeline_class": None,
    "model_config": None, "source": None, "inputs": [{"name": "sample", "dtype": "float32", "shape": ["batch", 1]}], "output": "out_sample",
    "layers": [], "float_layers": [], "quantizers": [],
}  # fmt: skip


def layer(macs: int, weight_bits: int | None, activation_bits: int) -> QuantizedLayer:
    return QuantizedLayer(name="n", op="linear", macs=macs, weight_bits=weight_bits, activation_bits=activation_bits, quantizers=[])


def bundle(*layers: QuantizedLayer, quantization: dict[str, Any] | None = PRESET) -> Artifact:
    details = GRAPH | {"layers": [{**each.model_dump(), "output": "y"} for each in layers]}
    return Artifact(Path(), Manifest(kind="bundle", model="m", quantization=quantization, details=details))


def engine(**details: Any) -> Artifact:
    built = {
        "backend": "openvino",
        "version": "1",
        "batch": [1, 1, 8],
        "engines": [{"compute_capability": None, "file": "f", "report": "r"}],
    }
    return Artifact(Path(), Manifest(kind="engine", model="m", quantization=PRESET, details=GRAPH | built | details))


def test_layers_that_were_raised_are_named_by_their_share_of_the_work() -> None:
    raised = bundle(layer(60, 4, 8), layer(31, 8, 8), layer(9, 8, 8), layer(1000, None, 8))
    assert layer_bits(raised) == [
        BitsOfWork(weight_bits=4, activation_bits=8, share=0.6),
        BitsOfWork(weight_bits=8, activation_bits=8, share=0.4),
    ]
    assert bits_in_words(raised) == "W4A8, 40% at W8A8"
    assert bits_label(bundle(layer(1, 4, 8), layer(2, 8, 8))) == "W8A8"


def test_the_last_layer_alone_is_not_worth_a_word() -> None:
    assert bits_in_words(bundle(layer(999, 4, 8), layer(1, 8, 8))) == "W4A8"


def test_without_layers_the_preset_is_all_that_is_known() -> None:
    assert bits_in_words(bundle()) == "W4A8"
    assert bits_in_words(bundle(quantization=None)) is None
    assert bits_label(engine()) == "W4A8"
    assert bits_label(engine(layer_bits=[{"weight_bits": 8, "activation_bits": 8, "share": 1.0}])) == "W8A8"


def test_fraction_of_work() -> None:
    layers = [layer(1, 4, 8), layer(2, 8, 8), layer(1, None, 16)]
    assert fraction_of_work(layers, lambda x: wider_weights(x, 6)) == 0.5
    assert fraction_of_work([*layers, FloatLayer(name="n", op="linear", macs=4, reason="kept")], integer_activations) == 3 / 8
    assert fraction_of_work([], integer_activations) == 0.0
