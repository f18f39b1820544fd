"""Bits are those of the layers, by how much of the work they do, and not those of the preset."""

from __future__ import annotations

from typing import Any

from dq_deploy.artifacts import Manifest
from dq_deploy.artifacts.layer_bits import bits_in_words, bits_label, integer_activations, layer_bits, share_of_work, wider_weights


def layer(macs: int, weight_bits: int | None, activation_bits: int) -> dict[str, Any]:
    return {"macs": macs, "weight_bits": weight_bits, "activation_bits": activation_bits}


def manifest(*layers: dict[str, Any], **details: Any) -> Manifest:
    preset = {"weight_bits": 4, "activation_bits": 8}
    return Manifest(kind="bundle", model="m", quantization=preset, details={"layers": list(layers), **details})


def test_layers_that_were_raised_are_named_by_their_share_of_the_work() -> None:
    raised = manifest(layer(60, 4, 8), layer(31, 8, 8), layer(9, 8, 8), layer(1000, None, 8))
    assert layer_bits(raised) == [
        {"weight_bits": 4, "activation_bits": 8, "share": 0.6},
        {"weight_bits": 8, "activation_bits": 8, "share": 0.4},
    ]
    assert bits_in_words(raised) == "W4A8, 40% at W8A8"
    assert bits_label(manifest(layer(1, 4, 8), layer(2, 8, 8))) == "W8A8"


def test_the_last_layer_alone_is_not_worth_a_word() -> None:
    assert bits_in_words(manifest(layer(999, 4, 8), layer(1, 8, 8))) == "W4A8"


def test_without_layers_the_preset_is_all_that_is_known() -> None:
    assert bits_in_words(manifest()) == "W4A8"
    assert bits_in_words(Manifest(kind="bundle", model="m")) is None
    engine = manifest(layer_bits=[{"weight_bits": 8, "activation_bits": 8, "share": 1.0}])
    engine.details.pop("layers")
    assert bits_label(engine) == "W8A8"


def test_share_of_work() -> None:
    layers = [layer(1, 4, 8), layer(2, 8, 8), layer(1, None, 16)]
    assert share_of_work(layers, lambda x: wider_weights(x, 6)) == 0.5
    assert share_of_work([*layers, {"macs": 4}], integer_activations) == 3 / 8
    assert share_of_work([], integer_activations) == 0.0
