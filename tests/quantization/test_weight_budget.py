"""A width for each layer under a budget of bytes: the choice is the best one, what it says holds, and what cannot be is refused."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch

from dq_deploy.accuracy import check
from dq_deploy.artifacts import open_artifact
from dq_deploy.errors import UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization.bits.sensitivity import some_inputs
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.graph.calls import as_model
from dq_deploy.quantization.output_bias import output_bias
from dq_deploy.quantization.pipeline import per_timestep_snr
from dq_deploy.quantization.width_choice import choose_widths, error_shares, narrowing_noise
from dq_deploy.quantization.widths import at_width, nested_layers, sliced, weights_bytes
from dq_deploy.report.recipe import commands
from tests.command_line import Cli, assert_refused
from tests.tiny import PlainUNet, make_checkpoint


def layers_of(checkpoint: Checkpoint) -> list[str]:
    return list(nested_layers(checkpoint.model))


def test_the_noise_of_a_layer_is_what_the_whole_network_gives_with_that_layer_narrowed(nested_checkpoint: Checkpoint) -> None:
    model, names = nested_checkpoint.model, layers_of(nested_checkpoint)
    found = narrowing_noise(nested_checkpoint, dict.fromkeys(names, (8, 4, 3)))
    inputs = list(some_inputs(nested_checkpoint.reference(), nested_checkpoint.details.inputs).values())
    with torch.no_grad():
        expected = model(*inputs)
        for name, bits in product(names, (4, 3)):
            layer = nested_layers(model)[name]
            layer.width = bits
            noise = (model(*inputs) - expected).flatten(1).square().sum(dim=1) / expected.flatten(1).square().sum(dim=1)
            layer.width = None
            torch.testing.assert_close(found[name][bits].float(), noise, rtol=1e-3, atol=1e-9)
            assert float(noise.min()) > 0
    assert {name: set(tried) for name, tried in found.items()} == {name: {4, 3} for name in names}


def test_the_widths_are_those_of_the_least_error_within_the_budget(nested_checkpoint: Checkpoint) -> None:
    model, names = nested_checkpoint.model, layers_of(nested_checkpoint)
    shares = error_shares(narrowing_noise(nested_checkpoint, dict.fromkeys(names, (8, 4, 3))))
    low, high = (weights_bytes(model, bits) for bits in (3, 8))
    for part in (0.1, 0.4, 0.8):
        limit = int(low + part * (high - low))
        width, choice = choose_widths(nested_checkpoint, f"{limit}B")
        mixes = [dict(zip(names, bits, strict=True)) for bits in product((8, 4, 3), repeat=len(names))]
        within = [mix for mix in mixes if weights_bytes(model, mix) <= limit]
        best = min(within, key=lambda mix: sum(shares[name].get(bits, 0) for name, bits in mix.items()))
        assert 0 < len(within) < len(mixes)
        assert width == best
        assert choice.weights_bytes == weights_bytes(model, width) <= limit
        with at_width(model, width, choice.error_share):
            assert choice.snr_db == per_timestep_snr(as_model(nested_checkpoint.model), nested_checkpoint.reference())
        assert choice.snr_db == per_timestep_snr(as_model(sliced(nested_checkpoint, width, choice).model), nested_checkpoint.reference())
        bias, whole = output_bias(sliced(nested_checkpoint, width, choice).model), output_bias(model)
        assert bias is not None
        assert whole is not None
        total = sum(choice.error_share.values())
        narrow = {bits: sum(choice.error_share[name] for name in names if width[name] == bits) / total for bits in (4, 3)}
        mixed = sum((part * whole.narrower[bits] for bits, part in narrow.items()), (1 - sum(narrow.values())) * whole.table)
        torch.testing.assert_close(bias.table, mixed)
        assert choice.error_share == {name: round(share[3], 6) for name, share in shares.items()}
    everything, choice = choose_widths(nested_checkpoint, "1x")
    assert set(everything.values()) == {8}
    assert (choice.weights_bytes, choice.float_bytes) == (high, 4 * sum(p.numel() for p in PlainUNet().parameters()))
    assert set(choose_widths(nested_checkpoint, f"{low}B")[0].values()) == {3}


def test_a_bundle_says_what_was_chosen_and_is_checked_as_that(nested_checkpoint: Checkpoint, cli: Cli, tmp_path: Path) -> None:
    made = cli(
        "export", nested_checkpoint.artifact.path, "-o", tmp_path / "b", "--target", "qdq", "--dtype", "fp32", "--weight-budget", "5kB"
    )
    assert made.code == 0, made.err
    assert "of a budget of 5kB" in made.out
    bundle = open_artifact(tmp_path / "b", "bundle")
    width, choice = choose_widths(nested_checkpoint, "5kB")
    assert (bundle.details.width, bundle.details.width_choice) == (width, choice)
    assert len(set(width.values())) > 1
    stored = {layer.name: layer.weight_storage for layer in bundle.details.layers if layer.name in width}
    assert stored == {name: {3: "planes", 4: "int4", 8: "int8"}[bits] for name, bits in width.items()}
    assert commands(bundle, nested_checkpoint.artifact)[0].endswith("--target qdq --dtype fp32 --weight-budget 5kB")
    shown = cli("inspect", tmp_path / "b").out
    assert choice.summary in shown
    harmful = max(choice.error_share, key=lambda name: choice.error_share[name])
    assert f"{choice.error_share[harmful]:.1%}" in shown
    verdict = check(bundle, nested_checkpoint.artifact)
    assert verdict, verdict.failures
    measured = [row.snr_reference_db for row in verdict.timesteps]
    assert measured == pytest.approx(choice.snr_db, abs=0.01)
    other = export(nested_checkpoint.artifact, tmp_path / "other", target="qdq", dtype="fp32", weight_bits=4)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["details"]["width_choice"]["weights_bytes"] <= 5000
    assert (tmp_path / "b" / "model.onnx").read_bytes() != (other.path / "model.onnx").read_bytes()


def test_what_cannot_be_is_refused(nested_checkpoint: Checkpoint, plain_checkpoint: Checkpoint, cli: Cli, tmp_path: Path) -> None:
    nested, plain = nested_checkpoint.artifact.path, plain_checkpoint.artifact.path

    def refused(*words: str, options: tuple[str, ...], source: Path = nested, target: str = "qdq") -> None:
        assert_refused(cli("export", source, "-o", tmp_path / "b", "--target", target, *options), 2, *words)

    budget = ("--weight-budget", "0.3x")
    refused("weights of one width", "--matryoshka", source=plain, options=budget)
    refused("--weight-bits gives all layers one width", "leave one of them out", options=(*budget, "--weight-bits", "4"))
    refused("the float model has no weights of integer bits", "leave out --weight-budget", options=(*budget, "--float"))
    refused("target onnxruntime gives every weight a byte", "--target qdq", options=budget, target="onnxruntime")
    refused("weight storage int8 gives every weight a byte", options=(*budget, "--weight-storage", "int8"))
    refused(
        "take 0.00403 MB (0.231x) at the least, and the budget is 0.00174 MB (0.100x)", "allow more", options=("--weight-budget", "0.1x")
    )
    for text in ("30dB", "0x", "much", "1.6"):
        refused("--weight-budget takes a size (1.6MB) or a share", f"not '{text}'", options=("--weight-budget", text))
    assert list(tmp_path.iterdir()) == []


def test_widths_that_take_the_same_bytes_are_no_choice(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(PlainUNet(), tmp_path / "c", rounding="nearest", matryoshka=(8, 6))
    with pytest.raises(UsageError, match="no width of .* takes fewer bytes than another"):
        choose_widths(checkpoint, "0.3x")
