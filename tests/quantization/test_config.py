from __future__ import annotations

import math
from typing import Any

import pytest

from dq_deploy.errors import UsageError
from dq_deploy.formats.presets import PRESETS, preset_of
from dq_deploy.quantization.config import FIRST, LAST, QuantizeConfig


def test_presets_set_both_bit_widths_and_options_win() -> None:
    for name, filled in PRESETS.items():
        config = QuantizeConfig.build(name)
        dumped = config.model_dump(mode="json")
        assert {"weight_bits", "activation_bits"} <= set(filled)
        assert all(dumped[option] == value for option, value in filled.items() if option != "keep")
        assert config.keep == {FIRST: "float", LAST: 8, **filled.get("keep", {})}
        assert preset_of(dumped) == name
    assert QuantizeConfig.build("w4a4", weight_bits=6, seed=None).weight_bits == 6


def test_scales_are_chosen_by_layer_where_it_is_worth_it_and_by_the_preset_alone() -> None:
    chosen = {name: QuantizeConfig.build(name).activations for name in PRESETS}
    assert {name for name, activations in chosen.items() if activations == "auto"} == {"w8a8", "w6a6", "w4a8", "vq3a8", "vq2a8"}
    assert QuantizeConfig.build("w8a8", weight_bits=6).activations == "auto"
    assert {QuantizeConfig.build(name, activation_bits=6).activations for name in ("w8a8", "w6a6", "w4a4")} == {"auto"}
    assert QuantizeConfig.build("w8a8", activation_bits=4).activations == "per-timestep"
    assert QuantizeConfig.build("w8a8", products="fp8").activations == "per-timestep"
    assert QuantizeConfig.build("w8a8", activation_bits=16).weight_only
    assert QuantizeConfig.build("w8a8", activations="static").activations == "static"
    assert QuantizeConfig.build("w8a8", method="quest").activations == "per-timestep"


def test_keep_adds_to_the_default_exceptions() -> None:
    assert QuantizeConfig.build(keep={"mid.*": "float"}).keep == {FIRST: "float", LAST: 8, "mid.*": "float"}


def test_an_unknown_preset_lists_those_that_exist() -> None:
    with pytest.raises(UsageError, match="w3a3") as caught:
        QuantizeConfig.build("w3a3")
    assert all(name in str(caught.value) for name in PRESETS)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("weight_bits", 1), ("weight_bits", 9), ("activation_bits", 0), ("activation_bits", 4.5), ("weight_bits", True), ("steps", 0),
        ("steps", 2000), ("iterations", -1), ("batch_size", 0), ("lr_scale", 0.0), ("lr_scale", math.nan), ("lr_weight", math.inf),
        ("max_float_share", math.nan), ("max_float_share", -0.1), ("seed", -1), ("calibration_samples", 1), ("reference_samples", 0),
        ("dilation", "paper"), ("keep", {"a": "int8"}), ("keep", {"a": 16}),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=option):
        QuantizeConfig.build(**{option: value})


def test_every_bad_option_is_named_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        QuantizeConfig.build(weight_bits=9, activation_bits=1, steps=0, turbo=True, lr_scale=-1.0)
    for name in ("weight_bits", "activation_bits", "steps", "turbo", "lr_scale", "got 9"):
        assert name in str(caught.value)


def test_an_option_that_is_none_shows_the_nearest() -> None:
    with pytest.raises(UsageError, match="calibration_sample: no such option. did you mean calibration_samples"):
        QuantizeConfig.build(calibration_sample=8)
