"""The list of methods: valid, distinct, and complete."""

from __future__ import annotations

from itertools import product

import pytest

from benchmarks.accuracy.denoisers import OUTSIDE_RUNTIMES
from benchmarks.accuracy.methods import (
    ALONE,
    BY_NAME,
    COMPONENTS,
    DILATEQUANT,
    DILATIONS,
    FLOAT_PRESETS,
    INTEGER_PRESETS,
    METHODS,
    PRESETS,
    SLICED,
    WIDTHS,
    canonical,
    method,
    representative,
)  # fmt: skip
from benchmarks.accuracy.settings import Settings
from dq_deploy.artifacts import sha256_json
from dq_deploy.errors import UsageError
from dq_deploy.formats.presets import CODEBOOKS

SETTINGS = Settings()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", ["unet", "transformer"])
def test_every_method_is_a_valid_configuration_and_no_two_are_the_same(preset: str, family: str) -> None:
    ours = [m for m in METHODS if m.tool == "dq-deploy" and preset in m.presets]
    hashes = {m.name: sha256_json(canonical(m.config(preset, SETTINGS, seed=0), family)) for m in ours}
    names = [m.name for m in ours if representative(m.name, preset, SETTINGS, family=family) == m.name]
    assert len({hashes[name] for name in names}) == len(names) == len(set(hashes.values()))
    assert set(hashes) - set(names) <= (set() if family == "unet" else {"joint"})  # a transformer has no skips to be joint or split


def test_every_outside_tool_has_a_runtime_of_its_own() -> None:
    assert OUTSIDE_RUNTIMES.keys() == {m.tool for m in METHODS} - {"dq-deploy"}


def test_what_quantizes_linear_layers_alone_is_compared_on_transformers() -> None:
    of_family = {family: {m.name for m in METHODS if m.compared("w8a8", family)} for family in ("unet", "transformer")}
    assert of_family["transformer"] - of_family["unet"] == {"vidit-q", "torchao"}


def test_a_double_is_run_once() -> None:
    assert representative("joint", "w8a8", SETTINGS, family="transformer") == DILATEQUANT
    assert representative("joint", "w8a8", SETTINGS, family="unet") == "joint"
    assert representative("base", "w8a8", SETTINGS) == "base"
    assert representative(DILATEQUANT, "w4a4", SETTINGS) == DILATEQUANT
    assert representative("nncf", "w8a8", SETTINGS) == "nncf"


def test_without_training_the_trained_methods_are_doubles_of_the_others() -> None:
    untrained = Settings(iterations=0)
    assert representative("base", "w8a8", untrained) == "q-diffusion"
    assert representative("end-to-end", "w4a4", untrained) == representative("wd-tpq", "w4a4", untrained)


@pytest.mark.parametrize("preset", INTEGER_PRESETS)
def test_components_are_all_eight_combinations(preset: str) -> None:
    assert set(COMPONENTS) == set(product([False, True], repeat=3))
    for (dilation, tables, distillation), name in COMPONENTS.items():
        config = method(name).config(preset, SETTINGS, seed=0)
        assert (config.dilation != "none", config.activations != "static", config.iterations > 0) == (dilation, tables, distillation)
        assert config.zero_points
        assert config.distillation == "block"


def test_dilation_rules_differ_in_nothing_else() -> None:
    configs = [method(name).config("w4a4", SETTINGS, seed=0).model_dump() for name in DILATIONS]
    assert [c.pop("dilation").value for c in configs] == ["none", "asymmetric", "symmetric", "smoothquant", "auto"]
    assert all(c == configs[0] for c in configs)


def test_the_budget_is_the_same() -> None:
    for m in METHODS:
        assert m.iterations(SETTINGS) == {"none": 0, "block": 60, "end-to-end": 90}[m.training]
        if m.tool == "dq-deploy":
            config = m.config("w6a6", SETTINGS, seed=3)
            assert (config.calibration_samples, config.steps, config.batch_size, config.seed) == (64, 20, 32, 3)


def test_presets_of_narrow_floats_have_the_methods_that_are_not_for_integers() -> None:
    for preset in FLOAT_PRESETS:
        own = [m.name for m in METHODS if preset in m.presets]
        branches = ["gptq-untrained-low-rank"] if preset == "nvfp4" else []
        assert own == ["gptq", "gptq-untrained", "gptq-untrained-tokens", *branches, "default"]
        assert [representative(name, preset, SETTINGS) for name in own] == own
        configs = [method(name).config(preset, SETTINGS, seed=0) for name in own]
        assert {c.products for c in configs} == {"nvfp4" if preset == "nvfp4" else "fp8"}
        assert [c.activations.value for c in configs[1:3]] == ["per-timestep", "per-token"]


def test_widths_are_of_the_program_or_sliced_from_one_checkpoint() -> None:
    alone, sliced = method(ALONE), method(SLICED)
    made = {preset: (alone.config(preset, SETTINGS, seed=0), sliced.config(preset, SETTINGS, seed=0)) for preset in WIDTHS}
    assert [(a.weight_bits, a.activation_bits) for a, _ in made.values()] == [(bits, 8) for bits in WIDTHS.values()]
    assert {s.matryoshka for _, s in made.values()} == {tuple(WIDTHS.values())}
    assert len({sha256_json(canonical(s, "unet")) for _, s in made.values()}) == 1  # one checkpoint
    whole = alone.config("w8a8", SETTINGS, seed=0).model_dump()
    assert {key for key, value in made["w3a8"][1].model_dump().items() if value != whole[key]} == {"matryoshka"}
    assert [alone.config(name, SETTINGS, seed=0).codebook.made().books for name in CODEBOOKS] == [3, 2]  # type: ignore[union-attr]


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(UsageError, match="unknown method 'magic'") as caught:
        method("magic")
    assert caught.value.hint
    assert all(name in caught.value.hint for name in BY_NAME)
