"""What is right passes with few samples, and what is wrong fails with few samples."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from dq_deploy.accuracy import check
from dq_deploy.accuracy.end_to_end import TimestepParity, _allow_for_chance, snr_db
from dq_deploy.accuracy.parity_spread import NoisePowers, chance_db, noise_powers, standard_error_db
from dq_deploy.artifacts import Artifact, create_artifact, open_artifact
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from tests.flow import Flow, altered, altered_manifest
from tests.nightly import mostly_nightly

SAMPLES = [1, 2, 4]
LAYER = "down_blocks.0.resnets.0.conv2.input"


def powers(reference: list[float], judged: list[float]) -> NoisePowers:
    return NoisePowers(np.array(reference), np.array(judged))


def test_the_error_is_that_of_the_paired_ratio() -> None:
    """Against resampling: samples differ tenfold in their noise, and only the ratio's scatter counts."""
    generator = np.random.default_rng(0)
    reference = 10.0 ** generator.uniform(0, 1, 400)
    judged = reference * np.exp(0.1 * generator.standard_normal(400))
    draws = generator.integers(0, 400, (4000, 400))
    replicated = 10 * np.log10(reference[draws].sum(axis=1) / judged[draws].sum(axis=1))
    assert standard_error_db([NoisePowers(reference, judged)]) == pytest.approx(replicated.std(), rel=0.05)
    assert standard_error_db([NoisePowers(reference, reference * 2)]) == pytest.approx(0, abs=1e-9)


def test_all_timesteps_tell_of_the_chance() -> None:
    quiet, flipped = powers([1, 1, 1, 1], [1, 1, 1, 1]), powers([1, 1, 1, 1], [1, 1, 1, 1.3])
    alone = standard_error_db([flipped])
    assert alone is not None
    assert standard_error_db([flipped, quiet, quiet, quiet]) == pytest.approx(alone / 2)
    assert standard_error_db([quiet]) == 0


def test_one_sample_has_no_spread_of_its_own() -> None:
    assert standard_error_db([powers([1], [10**0.1]), powers([1], [10**-0.1])]) == pytest.approx(2**0.5)
    assert standard_error_db([powers([1], [2])]) is None
    assert chance_db(None, 1) == 3
    assert chance_db(None, 4) == 1.5
    assert chance_db(0.1, 4) == pytest.approx(0.3)
    assert chance_db(9.0, 9) == 1
    assert chance_db(0.1, 0) == 0


@pytest.mark.parametrize(("judged", "alike"), [([1, 1, 1, 1.51], True), ([1.127, 1.127, 1.127, 1.127], False)])
def test_half_a_decibel_by_one_sample_is_chance_and_by_all_of_them_is_not(judged: list[float], alike: bool) -> None:
    """A right bundle of a tiny FLUX.2 had 40.87 dB for 41.39 over four samples, and passed with sixteen."""
    noise = powers([1, 1, 1, 1], judged)
    row = TimestepParity(timestep=0, snr_reference_db=41.39, snr_bundle_db=40.87, error_float=0, error_reference=0)
    assert not row.alike
    _allow_for_chance([row], [noise])
    assert row.alike is alike


def test_what_has_no_ratio_is_left_out() -> None:
    good = powers([1, 2], [2, 1])
    for bad in (powers([0, 0], [1, 1]), powers([1, 1], [math.nan, 1]), powers([1, 1], [math.inf, 1])):
        assert standard_error_db([bad, good]) == standard_error_db([good])
        assert standard_error_db([bad]) is None


def test_the_halves_of_a_seed_are_one_sample() -> None:
    expected, ours = torch.zeros(4, 2), torch.tensor([[1.0, 1], [2, 0], [0, 3], [0, 0]])
    found = noise_powers(expected, ours, 2 * ours, per_seed=2)
    np.testing.assert_array_equal(found.reference, [6, 9])
    np.testing.assert_array_equal(found.judged, [24, 36])


@pytest.mark.parametrize(
    ("expected", "got", "db"),
    [
        ([1.0, 0.0], [1.0, 0.0], 150),
        ([0.0, 0.0], [0.0, 0.0], 150),  # a network whose output is zero, and right
        ([0.0, 0.0], [0.0, 1e-9], -150),
        ([1.0, 0.0], [1.1, 0.0], 20),
        ([1e-30, 0.0], [1e10, 0.0], -150),
    ],
)
def test_an_snr_is_a_number_of_json(expected: list[float], got: list[float], db: float) -> None:
    tensors = [torch.tensor(values, dtype=torch.float64) for values in (expected, got)]
    assert snr_db(*tensors) == pytest.approx(db)
    assert math.isnan(snr_db(torch.tensor([1.0]), torch.tensor([math.nan])))
    assert math.isnan(snr_db(torch.zeros(0), torch.zeros(0)))


@pytest.fixture(scope="module", params=mostly_nightly(SAMPLES, 1, 4))
def few(request: pytest.FixtureRequest, flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """The flow's checkpoint with so many reference samples, and its bundle."""
    folder = tmp_path_factory.mktemp("few")
    source = open_artifact(flow.checkpoint, "checkpoint")
    with create_artifact(folder / "checkpoint", source.manifest.model_copy(deep=True)) as work:
        for name in source.manifest.files:
            (work / name).write_bytes(source.file(name).read_bytes())
        tensors = load_file(work / "reference.safetensors")
        kept = {name: value if name == "timesteps" else value[:, : request.param].clone() for name, value in tensors.items()}
        save_file(kept, work / "reference.safetensors")
    checkpoint = open_artifact(folder / "checkpoint", "checkpoint")
    return checkpoint, altered_manifest(flow.bundle("qdq"), folder / "bundle", parent=checkpoint.as_parent)


def test_a_right_bundle_passes_with_few_samples(few: tuple[Artifact, Artifact]) -> None:
    checkpoint, bundle = few
    result = check(bundle, checkpoint, engines=["openvino"])
    assert result.failures == []
    row = result.timesteps[0]
    assert row.samples in SAMPLES
    assert 0.5 <= row.allowed_db <= 0.5 + 3 / row.samples**0.5


def rolled(table: np.ndarray) -> np.ndarray:
    return np.roll(table, 1)


def raised(table: np.ndarray) -> np.ndarray:
    return table + 1


@pytest.mark.parametrize(
    ("name", "edit"),
    [(f"{LAYER}.scale", rolled), (f"{LAYER}.zero_point", raised), (f"{LAYER.removesuffix('.input')}.bias", np.zeros_like)],
    ids=["a table shifted by a row", "a zero-point", "a dropped bias"],
)
def test_a_wrong_bundle_fails_with_few_samples(few: tuple[Artifact, Artifact], tmp_path: Path, name: str, edit: object) -> None:
    checkpoint, bundle = few

    def change(model: object) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == name)  # type: ignore[attr-defined]
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(edit(values.copy()).astype(values.dtype), name))  # type: ignore[operator]

    assert not check(altered(bundle, tmp_path / "b", change), checkpoint, optimized=False)


@pytest.mark.parametrize("factor", [0.9, 1.2])
def test_a_wrong_engine_fails_end_to_end_with_few_samples(few: tuple[Artifact, Artifact], monkeypatch: pytest.MonkeyPatch,
                                                          factor: float) -> None:  # fmt: skip
    checkpoint, bundle = few
    right = OpenVinoRunner._infer
    monkeypatch.setattr(OpenVinoRunner, "_infer", lambda self, feeds: right(self, feeds) * np.float32(factor))
    result = check(bundle, checkpoint, engines=["openvino"], optimized=False)
    assert len(result.failures) == len(result.timesteps)
    assert all(failure.startswith("openvino, timestep") for failure in result.failures)
    assert "dB over" in result.failures[0]
