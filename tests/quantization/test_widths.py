"""Checkpoints of several widths: what is stored, what a slice of it is, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dq_deploy.accuracy import check
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters import export
from dq_deploy.hub.card import model_card
from dq_deploy.quantization import QuantizeConfig, load_checkpoint, numerics
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.output_bias import output_bias
from dq_deploy.quantization.weights import QuantizedWeight
from dq_deploy.quantization.widths import at_width, nested_layers, sliced, weights_bytes
from dq_deploy.report.make import ReportRequest, write_report
from tests.command_line import Cli, assert_refused
from tests.tiny import WHOLE, WIDTHS, PlainUNet, change_tensors, make_checkpoint, resealed


def weights(checkpoint: Checkpoint) -> dict[str, QuantizedWeight]:
    return {name: layer for name, layer in checkpoint.layers.items() if isinstance(layer, QuantizedWeight)}


def outputs(checkpoint: Checkpoint) -> torch.Tensor:
    reference = checkpoint.reference()
    answer: torch.Tensor = checkpoint.model(*reference.flat(slice(None))[:2])
    return answer


@pytest.mark.parametrize(("widths", "said"), [
    ((4, 8), "descending from 8"), ((8,), "two widths or more"), ((9,), "descending from 8"), ((8, 4, 4), "descending"), ((8, 1), "to 2"),
])  # fmt: skip
def test_widths_that_are_not_nested_are_refused(widths: tuple[int, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        QuantizeConfig.build(matryoshka=widths)


@pytest.mark.parametrize(("options", "said"), [
    ({"preset": "w4a8"}, r"matryoshka 8,4 stores 8-bit weights, and weight_bits \(of the preset\) is 4"),
    ({"preset": "w4a16"}, "activation_bits 16 leaves these in float"),
    ({"weight_bits": 6}, r"weight_bits \(of the preset\) is 6"),
])  # fmt: skip
def test_weights_that_are_settled_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        QuantizeConfig.build(**{"preset": "w8a8", "matryoshka": (8, 4), **options})
    assert QuantizeConfig.build("w8a8", matryoshka=(8, 4), activation_bits=4).matryoshka == (8, 4)


def test_the_command_line_refuses_them_too(cli: Cli, tmp_path: Path) -> None:
    def refused(*words: str, options: tuple[str, ...]) -> None:
        assert_refused(cli("quantize", "builtin:fashion-mnist-dit", "-o", tmp_path / "o", *options), 2, *words)

    refused("descending from 8", "not 4,8", options=("--matryoshka", "4,8"))
    refused("--matryoshka takes whole numbers", options=("--matryoshka", "8;4"))
    refused("weight_bits (of the preset) is 4", options=("--matryoshka", "8,4", "--preset", "w4a8"))
    for widths in (("--matryoshka", "8,4"), ("--method", "matgptq")):
        refused("--auto-bits chooses", "leave one out", options=(*widths, "--auto-bits", "0.2x"))
    assert list(tmp_path.iterdir()) == []


def test_a_network_with_nothing_to_slice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no layer to slice"):
        make_checkpoint(PlainUNet(), tmp_path / "c", matryoshka=WIDTHS, keep={"*": 8})


def test_a_slice_has_the_most_significant_bits(nested_checkpoint: Checkpoint) -> None:
    whole, four = weights(nested_checkpoint), weights(sliced(nested_checkpoint, 4))
    assert {name for name, layer in whole.items() if not layer.widths} == {"qkv", "last"}
    for name, layer in whole.items():
        assert layer.frozen is not None
        codes, scale = layer.frozen
        found = four[name].frozen
        assert found is not None
        if not layer.widths:
            assert torch.equal(found[0], codes)
            continue
        assert (four[name].bits, four[name].widths) == (4, ())
        expected = torch.clamp(torch.round(codes.float() / 16), -7, 7)
        assert torch.equal(found[0].float(), expected)
        assert torch.equal(found[1], scale * 16)
    assert all(layer.bits == 8 for layer in nested_layers(nested_checkpoint.model).values()), "the checkpoint itself stays as it was"


def test_a_model_at_a_width_is_its_slice(nested_checkpoint: Checkpoint) -> None:
    whole = outputs(nested_checkpoint)
    for width in (4, 3, dict.fromkeys(nested_layers(nested_checkpoint.model), 4) | {"down": 8, "out": 3}):
        with at_width(nested_checkpoint.model, width):
            inside = outputs(nested_checkpoint)
        torch.testing.assert_close(inside, outputs(sliced(nested_checkpoint, width)))
        assert not torch.equal(inside, whole)
    assert torch.equal(outputs(nested_checkpoint), whole)


def test_every_width_has_its_own_mean_error(nested_checkpoint: Checkpoint) -> None:
    whole = output_bias(nested_checkpoint.model)
    assert whole is not None
    found = {4: output_bias(sliced(nested_checkpoint, 4).model), 3: output_bias(sliced(nested_checkpoint, 3).model)}
    for bits, correction in found.items():
        assert correction is not None
        assert torch.equal(correction.table, whole.narrower[bits])
        assert not torch.equal(correction.table, whole.table)
    mixed = output_bias(sliced(nested_checkpoint, dict.fromkeys(nested_layers(nested_checkpoint.model), 4) | {"down": 3}).model)
    assert mixed is not None
    layers = nested_layers(nested_checkpoint.model)
    part = layers["down"].frozen[0].numel() / sum(layer.frozen[0].numel() for layer in layers.values())  # type: ignore[index]
    torch.testing.assert_close(mixed.table, part * whole.narrower[3] + (1 - part) * whole.narrower[4])


def test_the_manifest_says_what_each_width_costs_and_is_worth(nested_checkpoint: Checkpoint) -> None:
    records = nested_checkpoint.details.widths
    assert [record.weight_bits for record in records] == list(WIDTHS)
    assert records[0].snr_db == nested_checkpoint.details.snr_db["after_distillation"]
    assert min(records[0].snr_db) > min(records[1].snr_db) > min(records[2].snr_db) > 5
    layers = weights(nested_checkpoint)
    sliced_weights = sum(layer.frozen[0].numel() for layer in layers.values() if layer.widths)  # type: ignore[index]
    assert records[0].weights_bytes - records[1].weights_bytes == sliced_weights // 2
    in_planes = sum(layer.frozen[0].numel() for layer in layers.values() if layer.widths and layer.frozen[0].numel() % 8 == 0)  # type: ignore[index]
    assert records[1].weights_bytes - records[2].weights_bytes == in_planes // 8 > 0
    assert [weights_bytes(nested_checkpoint.model, bits) for bits in WIDTHS] == [record.weights_bytes for record in records]
    reference = nested_checkpoint.reference()
    got = outputs(sliced(nested_checkpoint, 3))
    noise = (got - reference.outputs.flatten(0, 1)).unflatten(0, (len(reference.timesteps), -1)).square().flatten(1).sum(dim=1)
    snr = 10 * torch.log10(reference.outputs.square().flatten(1).sum(dim=1) / noise)
    torch.testing.assert_close(snr, torch.tensor(records[2].snr_db), atol=1e-2, rtol=0)


def test_rounding_for_all_widths_is_better_than_slicing_what_was_rounded_for_8(tmp_path: Path, nested_checkpoint: Checkpoint) -> None:
    nearest = make_checkpoint(PlainUNet(), tmp_path / "c", rounding="nearest", matryoshka=WIDTHS, keep={"qkv": 6}).details.widths
    nested = nested_checkpoint.details.widths
    for bits in (1, 2):
        assert sum(nested[bits].snr_db) > sum(nearest[bits].snr_db) + 4  # over four timesteps


@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
def test_a_bundle_of_a_width_is_checked_as_that(nested_checkpoint: Checkpoint, tmp_path: Path, target: Any) -> None:
    bundle = export(nested_checkpoint.artifact, tmp_path / "b", target=target, weight_bits=4, dtype="fp32", **WHOLE[target])
    assert bundle.details.width == 4
    assert bundle.manifest.quantization is not None
    assert bundle.manifest.quantization["weight_bits"] == 4
    by_name = {layer.name: layer for layer in bundle.details.layers}
    assert (by_name["down"].weight_bits, by_name["qkv"].weight_bits, by_name["last"].weight_bits) == (4, 6, 8)
    assert by_name["down"].weight_storage == ("int4" if target == "qdq" else "int8")
    verdict = check(bundle, nested_checkpoint.artifact)
    assert verdict, verdict.failures
    assert verdict.final_error is not None
    assert "all bits of its weights alone" in verdict.final_error.summary
    snr = {row.timestep: row.snr_reference_db for row in verdict.timesteps}
    expected = dict(zip(nested_checkpoint.artifact.manifest.timesteps, nested_checkpoint.details.widths[1].snr_db, strict=True))
    assert snr == pytest.approx(expected, abs=0.2)


def test_a_bundle_that_says_another_width_than_it_has_fails(nested_checkpoint: Checkpoint, tmp_path: Path) -> None:
    export(nested_checkpoint.artifact, tmp_path / "b", target="qdq", weight_bits=4, dtype="fp32")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["details"]["width"] = 3
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    assert not check(resealed(tmp_path / "b"), nested_checkpoint.artifact)


def test_widths_that_a_checkpoint_does_not_have_are_refused_with_those_that_it_has(
    nested_checkpoint: Checkpoint, plain_checkpoint: Checkpoint, cli: Cli, tmp_path: Path
) -> None:
    place = ("-o", tmp_path / "b", "--target", "qdq")
    ended = cli("export", nested_checkpoint.artifact.path, *place, "--weight-bits", "5")
    assert_refused(ended, 2, "weights of 8, 4 and 3 bits, not of 5", "choose one of these")
    assert_refused(cli("export", plain_checkpoint.artifact.path, *place, "--weight-bits", "4"), 2, "weights of one width", "--matryoshka")
    ended = cli("export", nested_checkpoint.artifact.path, *place, "--weight-bits", "4", "--float")
    assert_refused(ended, 2, "the float model has no weights of integer bits")
    with pytest.raises(ArtifactError, match="does not have the layers whose widths were chosen"):
        sliced(nested_checkpoint, {"nowhere": 4})
    assert list(tmp_path.iterdir()) == []


def test_inspect_and_export_say_the_widths(nested_checkpoint: Checkpoint, cli: Cli, tmp_path: Path) -> None:
    shown = cli("inspect", nested_checkpoint.artifact.path).out
    assert all(f"weights of {bits} bits" in shown for bits in WIDTHS)
    made = cli("export", nested_checkpoint.artifact.path, "-o", tmp_path / "b", "--target", "qdq", "--weight-bits", "3")
    assert made.code == 0, made.err
    assert "width of the weights" in made.out
    shown = cli("inspect", tmp_path / "b").out
    assert "3 bits" in shown
    assert "W3A8" in shown


def test_page_and_card_say_the_widths(nested_checkpoint: Checkpoint, tmp_path: Path) -> None:
    widths = nested_checkpoint.details.widths
    wanted = ReportRequest(drawing=None, layer_error=False, check=False)
    data = write_report([nested_checkpoint.artifact.path], tmp_path / "r.html", wanted=wanted)
    assert [(fact.label, fact.value) for fact in data.summary] == [(f"weights of {one.weight_bits} bits", one.summary) for one in widths]
    card = model_card(nested_checkpoint.artifact)
    assert all(f"| weights of {one.weight_bits} bits | {one.summary} |" in card for one in widths)
    assert "| weights rounded | by GPTQ |" in card


@pytest.mark.parametrize("widths", [[8, 9], [4, 8], [6, 4], ["8", 4], [8, 8]])
def test_widths_of_a_changed_checkpoint_are_looked_at(nested_checkpoint: Checkpoint, tmp_path: Path, widths: list[Any]) -> None:
    place = tmp_path / "c"
    place.mkdir()
    for file in nested_checkpoint.artifact.path.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    graph = json.loads((place / "graph.json").read_text())
    graph["layers"]["down"]["widths"] = widths
    (place / "graph.json").write_text(json.dumps(graph))
    with pytest.raises(ArtifactError, match="'down' has weights of 8 bits that are said to hold"):
        load_checkpoint(resealed(place))


def test_a_table_of_a_width_is_looked_at(nested_checkpoint: Checkpoint, tmp_path: Path) -> None:
    place = tmp_path / "c"
    place.mkdir()
    for file in nested_checkpoint.artifact.path.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    changed = change_tensors(place, lambda tensors: tensors.update({"corrections.output_bias.table.4": torch.zeros(3, 1)}))
    with pytest.raises(ArtifactError, match=r"table 'corrections\.output_bias\.table\.4'"):
        load_checkpoint(changed)


def test_a_layers_gradient_is_that_of_its_slice() -> None:
    """A trained weight at a width: the straight-through estimator of the codes of that width."""
    from dq_deploy.formats import INT8
    from dq_deploy.quantization.weights import QuantizedLinear

    layer = QuantizedLinear(torch.tensor([[0.5, -1.0, 0.1]]), None, INT8)
    layer.widths, layer.width = (8, 4), 4
    codes, scale = layer.integer_weight()
    expected, step = numerics.sliced(numerics.quantize_weight(layer.weight, layer.steps(), INT8), layer.steps(), INT8, 4)
    assert torch.equal(codes, expected)
    assert torch.equal(scale, step)
    (codes * scale).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[1.0, 0.0, 1.0]]))  # -1 is -127 in 8 bits, and clipped in 4
