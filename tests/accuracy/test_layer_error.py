"""Error of every layer: the network's own at the last one, an error planted in one layer seen from there on, and a fold undone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dq_deploy.accuracy.layer_error import LayerErrors, layer_errors
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from tests.tiny import FAST, make_checkpoint


@pytest.fixture(scope="module")
def measured(unet_checkpoint: Checkpoint) -> LayerErrors:
    return layer_errors(unet_checkpoint)


def with_details(checkpoint: Checkpoint, **changed: object) -> Checkpoint:
    manifest = checkpoint.artifact.manifest.model_copy(update={"details": {**checkpoint.artifact.manifest.details, **changed}})
    return replace(checkpoint, artifact=replace(checkpoint.artifact, manifest=manifest))


def test_the_last_layer_has_the_networks_error(unet_checkpoint: Checkpoint, measured: LayerErrors) -> None:
    errors = measured
    assert errors.no_output is None
    assert errors.samples == FAST["reference_samples"]
    assert errors.timesteps == unet_checkpoint.artifact.manifest.timesteps
    # Nothing was trained, so "before" is the network without its output bias, which comes after the last layer.
    assert errors.output_db["conv_out"] == pytest.approx(unet_checkpoint.details.snr_db["before_distillation"], abs=0.01)
    assert errors.output_db.keys() == unet_checkpoint.layers.keys()
    assert errors.activation_db.keys() == unet_checkpoint.quantizers.keys()
    figures = [value for values in errors.output_db.values() for value in values]
    assert all(value is not None and 5 < value < 80 for value in figures)
    # Half-way through the network a skip's halves were compared each with its own share of the float layer.
    assert any(name.endswith("#skip") for name in errors.output_db)


def test_rounding_is_that_of_the_codes(unet_checkpoint: Checkpoint, measured: LayerErrors) -> None:
    """The first quantizer of the network, computed by hand from its table."""
    errors, reference = measured, unet_checkpoint.reference()
    record = next(iter(unet_checkpoint.quantizers))
    quantizer, kept = unet_checkpoint.quantizers[record], []
    hook = quantizer.register_forward_hook(lambda _, inputs, output: kept.append((inputs[0], output)))
    names = unet_checkpoint.details.inputs
    values = {names[0]: reference.samples[0], "timestep": reference.timesteps[0].repeat(len(reference.samples[0]))}
    with torch.no_grad():
        unet_checkpoint.model(*[values[name] for name in names])
    hook.remove()
    x, codes = kept[0]
    scale, shape = quantizer.scale_table()[0], [1] * x.dim()
    shape[quantizer.axis] = -1
    noise = x - codes.codes * scale * quantizer.dilation.reshape(shape)
    expected = 10 * math.log10(float(x.double().pow(2).sum() / noise.double().pow(2).sum()))
    assert errors.activation_db[record][0] == pytest.approx(expected, abs=0.01)


def test_a_planted_error_shows_in_its_layer_and_after_it(unet_checkpoint: Checkpoint, measured: LayerErrors) -> None:
    before = measured.output_db
    broken = load_checkpoint(unet_checkpoint.artifact.path)
    names = list(before)
    guilty = "mid_block.attentions.0.to_out.0"
    codes, scale = broken.layers[guilty].frozen  # type: ignore[union-attr, misc]
    broken.layers[guilty].set_frozen(-codes, scale)  # type: ignore[union-attr]
    after = layer_errors(broken).output_db
    place = names.index(guilty)
    assert all(after[name] == before[name] for name in names[:place])
    assert max(value for value in after[guilty] if value is not None) < 3
    assert all(a < b for a, b in zip(after["conv_out"], before["conv_out"], strict=True) if a is not None and b is not None)


def test_a_layer_that_took_a_division_is_compared_without_it(unet_checkpoint: Checkpoint, measured: LayerErrors) -> None:
    """Channels of its output divided by s, as a fold leaves them: an error only where nobody says so."""
    plain = measured.output_db
    folded = load_checkpoint(unet_checkpoint.artifact.path)
    layer = folded.layers["conv_out"]  # nothing reads it, so that nothing else changes
    codes, scale = layer.frozen  # type: ignore[union-attr, misc]
    layer.set_frozen(codes, scale / 4)  # type: ignore[union-attr]
    layer.bias.data.div_(4)  # type: ignore[union-attr]
    unsaid = layer_errors(folded).output_db
    first, *others = folded.artifact.manifest.details["dilation"]
    records = [{**first, "folded_into": ["conv_out"]}, *others]
    said = layer_errors(with_details(folded, dilation=records)).output_db
    assert all(value is not None and value < 3 for value in unsaid["conv_out"])
    assert said["conv_out"] == pytest.approx(plain["conv_out"], abs=0.5)


def test_without_a_float_model_only_rounding_is_measured(plain_checkpoint: Checkpoint) -> None:
    errors = layer_errors(plain_checkpoint)
    assert errors.output_db == {}
    assert errors.no_output == "this checkpoint was made from a module in memory: the float model cannot be loaded again"
    assert errors.activation_db.keys() == plain_checkpoint.quantizers.keys()


def test_other_weights_are_not_compared(unet_checkpoint: Checkpoint) -> None:
    source = {**unet_checkpoint.artifact.manifest.details["source"], "sha256": "0" * 64}
    errors = layer_errors(with_details(unet_checkpoint, source=source))
    assert errors.output_db == {}
    assert "are not those that the checkpoint was made from" in (errors.no_output or "")


def test_weight_only_layers_have_an_output_error_alone(tmp_path: Path, attention_pipeline: Path) -> None:
    checkpoint = make_checkpoint(attention_pipeline, tmp_path / "w4a16", preset="w4a16", dilation="auto", weight_block=0)
    errors = layer_errors(checkpoint)
    assert errors.activation_db == {}
    assert errors.output_db.keys() == checkpoint.layers.keys()
    assert errors.output_db["conv_out"] == pytest.approx(checkpoint.details.snr_db["after_distillation"], abs=0.01)
