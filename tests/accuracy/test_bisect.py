"""``check --bisect`` finds the layer that was broken, and the layers whose bits cost most; ``--min-snr`` fails what is far from float."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import dq_deploy
from dq_deploy.accuracy import check
from dq_deploy.accuracy.bisect import bisect
from dq_deploy.accuracy.divergence import _first
from dq_deploy.accuracy.error_sources import ErrorSources, error_sources
from dq_deploy.artifacts import Artifact
from dq_deploy.quantization.checkpoint import load_checkpoint
from tests.command_line import Cli, assert_refused
from tests.flow import OPTIONS, Flow, altered
from tests.nightly import mostly_nightly

BROKEN = "mid_block.resnets.0.conv2"
TARGETS = ["qdq", "onnxruntime"]


def broken(bundle: Artifact, path: Path, layer: str = BROKEN) -> Artifact:
    """The bundle with three times the bias of one layer, and then some."""

    def change(model: ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == f"{layer}.bias")
        tensor.CopyFrom(numpy_helper.from_array(3 * numpy_helper.to_array(tensor) + np.float32(1), tensor.name))

    return altered(bundle, path, change)


@pytest.mark.parametrize("target", TARGETS)
def test_the_broken_layer_is_found_at_the_first_timestep_of_sampling(flow: Flow, tmp_path: Path, target: str) -> None:
    bundle = broken(flow.bundle(target), tmp_path / "b")
    result = check(bundle, flow.checkpoint, optimized=False, bisect=True, engines=["openvino"] if target == "qdq" else [])
    assert not result
    assert result.bisection is not None
    found = result.bisection.divergences
    assert [row.engine for row in found] == ["onnxruntime, as written", "openvino"][: 2 if target == "qdq" else 1]
    for row in found:
        assert row.layer == BROKEN
        assert row.timestep == max(bundle.manifest.timesteps)
        assert row.error is not None
        assert row.before is not None
        assert row.before <= row.allowed < row.error
        assert row.compiled <= math.log2(len(bundle.manifest.details["layers"])) + 3


BRANCHES = ["time_embedding.linear_1", "up_blocks.0.resnets.0.time_emb_proj", "down_blocks.0.attentions.0.to_v", "conv_out"]


@pytest.mark.parametrize("layer", mostly_nightly(BRANCHES, "time_embedding.linear_1", "down_blocks.0.attentions.0.to_v"))
def test_a_broken_layer_beside_others_that_do_not_read_it_is_found(flow: Flow, tmp_path: Path, layer: str) -> None:
    result = check(broken(flow.bundle("qdq"), tmp_path / "b", layer), flow.checkpoint, optimized=False, engines=[], bisect=True)
    assert result.bisection is not None
    (found,) = result.bisection.divergences
    assert found.layer == layer
    assert found.before is None or found.before <= found.allowed


def test_nothing_diverges_where_nothing_is_broken(flow: Flow) -> None:
    result = check(flow.bundles["qdq"], flow.checkpoint, optimized=False, bisect=True)
    assert result
    assert result.bisection is not None
    assert result.bisection.divergences == []
    assert result.bisection.sources is not None


@pytest.mark.parametrize("count", range(1, 9))
def test_a_search_by_halves_finds_every_place(count: int) -> None:
    for first in range(count + 1):
        tried: list[int] = []

        def wrong(index: int, first: int = first, tried: list[int] = tried) -> bool:
            tried.append(index)
            return index >= first

        assert _first(wrong, range(count)) == (first if first < count else None)
        assert len(tried) == len(set(tried)) <= count.bit_length() + 1


@pytest.fixture(scope="module")
def sources(flow: Flow) -> ErrorSources:
    return error_sources(load_checkpoint(flow.checkpoint), 0.0)


def test_the_error_is_split_among_all_layers(flow: Flow, sources: ErrorSources) -> None:
    assert [row.layer for row in sources.layers] == [layer.name for layer in load_checkpoint(flow.checkpoint).details.layers]
    assert sum(row.error_share for row in sources.layers) == pytest.approx(1)
    assert sources.worst[0].error_share == max(row.error_share for row in sources.layers)
    for row in sources.layers:
        assert row.raised_db is None  # they have 8 bits
        assert row.float_db >= sources.snr_db
        assert row.weight_bits == (None if ".matmul" in row.layer else 8)
    assert sources.layers[-1].output_db == pytest.approx(sources.snr_db, abs=0.02)


def test_what_a_layer_in_float_is_predicted_to_buy_is_what_it_buys(flow: Flow, sources: ErrorSources, tmp_path: Path) -> None:
    best = sources.worst[0]
    again = dq_deploy.quantize(flow.pipeline, tmp_path / "c", **{**OPTIONS, "keep": {best.layer: "float"}, "max_float_share": 1.0})
    row = error_sources(load_checkpoint(again.path), 0.0)
    assert row.snr_db > sources.snr_db + 0.2
    assert row.snr_db == pytest.approx(best.float_db, abs=1.0)
    assert best.layer not in {x.layer for x in row.layers}


def test_a_float_model_that_is_gone_is_said(flow: Flow) -> None:
    loaded = load_checkpoint(flow.checkpoint)
    manifest = loaded.artifact.manifest.model_copy(update={"details": {**loaded.artifact.manifest.details, "source": None}})
    orphan = replace(loaded, artifact=replace(loaded.artifact, manifest=manifest))
    result = check(flow.bundles["qdq"], flow.checkpoint, optimized=False)
    found = bisect(flow.bundle("qdq"), orphan, result)
    assert found.sources is None
    assert found.no_sources is not None
    assert "in memory" in found.no_sources


def test_too_far_from_float(cli: Cli, flow: Flow) -> None:
    common = ("check", flow.bundles["qdq"], "--checkpoint", flow.checkpoint)
    passed = json.loads(cli(*common, "--format", "json").out)
    lowest = min(row["snr_bundle_db"] for row in passed["timesteps"])
    bound = f"{lowest + 0.1:.3f}"
    ended = cli(*common, "--min-snr", bound, "--bisect")
    assert ended.code == 6
    assert f"dB, and {float(bound):g} dB are required" in ended.err
    assert "the first layer whose output is below: " in ended.out
    assert "goes wrong" not in ended.out
    assert "error at timestep" in ended.out
    assert cli(*common, "--min-snr", f"{lowest - 0.1:.3f}").code == 0


def test_what_a_bisection_cannot_do(cli: Cli, flow: Flow) -> None:
    assert_refused(cli("check", flow.bundles["qdq"], "--lint", "--bisect"), 2, "--bisect compares with a checkpoint")
    assert_refused(cli("check", flow.bundles["qdq"], "--lint", "--min-snr", "3"), 2, "--min-snr compares with a checkpoint")
