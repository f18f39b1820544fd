"""Low-rank branches: the network stays what it was, its weights' largest part is no longer rounded, and all that follows knows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from dq_deploy.accuracy import check
from dq_deploy.accuracy.layer_error import layer_errors
from dq_deploy.artifacts import open_artifact
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.errors import UsageError
from dq_deploy.exporters import export
from dq_deploy.exporters.lint import lint
from dq_deploy.quantization import QuantizeConfig
from dq_deploy.quantization.graph.low_rank import decomposed
from dq_deploy.quantization.graph.plan import Plan, plan_with_branches
from dq_deploy.quantization.refit import refit
from dq_deploy.report.recipe import commands
from tests.command_line import Cli
from tests.tiny import FAST, SHAPE, PlainUNet, captured, make_checkpoint

WIDTH, RANK = 16, 2
OPTIONS: dict[str, Any] = {"preset": "nvfp4", "dilation": "none", "reference_samples": 8, "max_float_share": 0.6}


def network() -> PlainUNet:
    """What its attention reads is multiplied by a weight of which nearly all has rank 2."""
    model = PlainUNet(WIDTH).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (model.qkv, model.out):
            outputs, inputs = layer.weight.shape
            layer.weight.mul_(0.1).add_(torch.randn(outputs, 2, generator=generator) @ torch.randn(2, inputs, generator=generator) / 8)
    return model


def branched(graph: GraphModule, **options: Any) -> Plan:
    return plan_with_branches(graph, QuantizeConfig.build(**{**FAST, **OPTIONS, "low_rank": RANK, **options}))


def test_nothing_is_left_of_the_weight_that_was_taken_apart() -> None:
    graph = captured(network())
    before = {name: tensor.numel() for name, tensor in graph.state_dict().items()}
    plan = branched(graph)
    after = {name: tensor.numel() for name, tensor in graph.state_dict().items()}
    assert {"qkv.weight", "out.weight"} <= set(before)
    assert {"qkv.weight", "out.weight"}.isdisjoint(after)
    assert sum(after.values()) == sum(before.values()) + sum(count for name, count in after.items() if name.endswith(("#down", "#up")))
    assert {"qkv", "out"} <= {layer.name for layer in plan.quantized}


class Bare(torch.nn.Module):
    """Its product's weight is its own, and no module's: the layer has the name of its node."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        tokens = torch.nn.functional.linear(x.flatten(2).transpose(1, 2).repeat(1, 1, 16), self.weight).mean(-1)
        return x * tokens.reshape(x.shape) + timestep.reshape(-1, 1, 1, 1)


def test_a_layer_without_a_module_keeps_its_name() -> None:
    all_of_it = {**FAST, "keep": {"@first": 4}, "max_float_share": 1}
    names, branched_names = (
        {layer.name for layer in plan_with_branches(captured(Bare().eval()), QuantizeConfig.build("w4a8", **all_of_it, **more)).layers}
        for more in ({}, {"low_rank": 1})
    )
    assert len(branched_names) == len(names) + 2
    assert {name for name in branched_names if "#" not in name} == names


@pytest.mark.parametrize("shape", [(96, 32), (32, 96)])
def test_the_factors_are_those_of_the_largest_singular_vectors(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    up, down = decomposed(weight, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (up.shape, down.shape) == ((shape[0], 4), (4, shape[1]))
    assert torch.equal(up, up.half().float())
    assert torch.equal(down, down.half().float())
    left = float((weight - up @ down).square().sum())
    assert left == pytest.approx(float(torch.linalg.svdvals(weight)[4:].square().sum()), rel=1e-2)
    assert all(torch.equal(a, b) for a, b in zip((up, down), decomposed(weight, 4), strict=True))
    exact = up[:, :1] @ down[:1]
    torch.testing.assert_close(torch.mul(*decomposed(exact, 1)), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


def test_the_network_stays_what_it_was_and_the_branches_stay_float() -> None:
    graph = captured(network())
    x, t = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 400.0, 900.0])
    before, whole = graph(x, t), network().qkv.weight
    plan = branched(graph)
    assert float((graph(x, t) - before).abs().max()) < 1e-5 * float(before.abs().max())
    reasons = {layer.name: layer.float_reason for layer in plan.left_float}
    assert {"qkv#down", "qkv#up", "out#down", "out#up"} <= set(reasons)
    assert reasons["qkv#up"] == "low-rank branch of qkv"
    planned = {layer.name: layer for layer in plan.quantized}
    assert planned["qkv"].weight_format.name == "FP4"
    rest = graph.get_buffer(str(planned["qkv"].node.args[1].target))  # type: ignore[union-attr]
    assert float(rest.square().sum()) < 0.2 * float(whole.detach().square().sum())
    assert plan.float_fraction == branched(captured(network()), low_rank=0).float_fraction
    assert branched(graph, low_rank=0).float_fraction == plan.float_fraction  # planned again, a branch stays one


def test_what_has_no_use_for_a_branch_has_none() -> None:
    graph = captured(network())
    for options in ({"low_rank": 128}, {"preset": "w8a8"}, {"keep": {"*": 8}}):
        with pytest.raises(UsageError, match=r"low_rank is \d+, and no linear layer of up to 4 bits is smaller with such a branch"):
            branched(graph, **options)
    plan = branched(graph, preset="w4a4", keep={"qkv": 8, "@last": 4})
    assert {layer.name for layer in plan.layers if layer.branch} == {f"{name}#{way}" for name in ("embed.0", "embed.2", "out")
                                                                     for way in ("down", "up")}  # fmt: skip
    with pytest.raises(UsageError, match="a codebook has none: leave one of them out"):
        QuantizeConfig.build("vq2a8", low_rank=4)
    with pytest.raises(UsageError, match="low_rank: .*greater than or equal to 0.*got -1"):
        QuantizeConfig.build("nvfp4", low_rank=-1)


def test_the_output_is_nearer_with_them_and_integers_multiply_beside_them(tmp_path: Path) -> None:
    options = {**OPTIONS, "preset": "w4a4", "keep": {"[!qo]*": 8}}
    without, made = (make_checkpoint(network(), tmp_path / f"rank{rank}", **options, low_rank=rank) for rank in (0, RANK))
    theirs, ours = (checkpoint.details.snr_db["after_distillation"] for checkpoint in (without, made))
    assert all(b > a + 4 for a, b in zip(theirs, ours, strict=True))
    assert made.details.branched == ["qkv", "out"]
    bundle = open_artifact(export(made.artifact, tmp_path / "bundle", target="onnxruntime").path, "bundle")
    verdict = check(bundle, made.artifact)
    assert verdict, verdict.failures


def test_a_bundle_and_an_engine_of_fp4_have_them(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(network(), tmp_path / "checkpoint", **OPTIONS, low_rank=RANK)
    bundle = open_artifact(export(checkpoint.artifact, tmp_path / "bundle", target="qdq", dtype="fp16").path, "bundle")
    assert lint(bundle).findings == ()
    verdict = check(bundle, checkpoint.artifact)
    assert verdict, verdict.failures
    assert {row.layer for row in verdict.layers} == set(checkpoint.layers)
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        (report,) = load_report(build_engine(bundle, tmp_path / "engine", compute_capabilities=["12.0"], batch=(1, 2, 4)))
        assert report.summary()["not_as_planned"] == {}


def test_what_tells_of_a_checkpoint_knows_of_them_and_a_refit_is_refused(cli: Cli, attention_pipeline: Path, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(attention_pipeline, tmp_path / "checkpoint", preset="w4a4", low_rank=1)
    count = len(checkpoint.details.branched)
    assert count > 4
    assert f"of rank 1, beside {count} linear layers" in cli("inspect", checkpoint.artifact.path).out
    assert "--low-rank 1" in commands(checkpoint.artifact)[-1]
    errors = layer_errors(checkpoint)
    assert errors.no_output is None
    assert set(checkpoint.details.branched) <= set(errors.output_db)
    with pytest.raises(UsageError, match="low-rank branches, which are parts of its float weights\nquantize again with --lora"):
        refit(checkpoint.artifact.path, tmp_path / "refitted")
