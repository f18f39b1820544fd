from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import dq_deploy
from dq_deploy.cli import run
from dq_deploy.errors import UsageError
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.distillation.block_trainer import EVALUATE_EVERY
from dq_deploy.quantization.estimate.probe import MemoryValues, StepCost
from dq_deploy.quantization.estimate.rounding import Rates
from tests.flow import snapshot
from tests.tiny import FAST, SHAPE, PlainUNet, scheduler

OPTIONS = {**FAST, "iterations": 20, "preset": "w4a4", "rounding": "gptq"}


def estimated(**options: object) -> dq_deploy.quantization.Budget:
    return dq_deploy.estimate(PlainUNet(), scheduler=scheduler(), sample_shape=SHAPE, **{**OPTIONS, **options})


def test_it_names_what_the_run_then_does(tmp_path: Path) -> None:
    budget = estimated()
    made = dq_deploy.quantize(PlainUNet(), tmp_path / "out", scheduler=scheduler(), sample_shape=SHAPE, **OPTIONS)
    details = made.manifest.details
    assert [b.name for b in budget.blocks if b.trained_parameters] == [r["block"] for r in details["distillation"]]
    assert budget.float_layers == details["float_layers"]
    assert budget.float_mac_share == details["float_mac_share"]
    assert {name for b in budget.blocks for name in b.layers} == {layer["name"] for layer in details["layers"]}
    assert budget.samples == 4 * 8
    assert all(size > 0 for size in [*budget.disk_bytes.values(), *budget.memory_bytes.values()])
    assert budget.seconds["total"] == pytest.approx(sum(v for k, v in budget.seconds.items() if k != "total"), abs=0.5)


def test_what_is_left_out_costs_nothing() -> None:
    few, none, whole = estimated(train=["last"]), estimated(iterations=0), estimated(distillation="end-to-end")
    assert [b.name for b in few.blocks if b.trained_parameters] == ["last"]
    assert none.trained_parameters == 0
    assert none.seconds["distillation"] == none.disk_bytes["values between blocks"] == none.memory_bytes["training step"] == 0
    assert [b.name for b in whole.blocks] == ["whole network"]
    assert whole.trained_parameters > few.trained_parameters > 0
    assert whole.memory_bytes["training step"] > few.memory_bytes["training step"]
    with pytest.raises(UsageError, match="'nowhere' of train"):
        estimated(train=["nowhere"])


def test_rounding_is_counted_where_there_is_any() -> None:
    gptq, nearest = estimated(iterations=0, rounding="gptq"), estimated(iterations=0, rounding="nearest")
    assert gptq.memory_bytes["rounding"] > 0
    assert gptq.disk_bytes["values between rounded layers"] > 0
    assert gptq.memory_bytes["peak"] >= gptq.memory_bytes["rounding"]
    assert nearest.seconds["rounding"] == nearest.memory_bytes["rounding"] == nearest.disk_bytes["values between rounded layers"] == 0


def test_time_of_rounding_grows_with_the_layers() -> None:
    class Layers:
        shape = (2, 10, 2048)
        codebook = None
        widths = ()

    some: Any = [Layers(), Layers()]
    assert Rates(moments=0.0, rounding=0.0, column=3.0).seconds(some) == 3.0 * 2 * 2 * 2048
    # H: 8 positions for each input, three of four blocks of 1,024.
    assert Rates(moments=1.0, rounding=0.0, column=0.0).seconds(some) == 2 * 2 * 8 * 2048 * 2048**2 * 3 / 4
    # The factor; and of ten outputs half a product for each of five scales, and one for the nearest codes.
    assert Rates(moments=0.0, rounding=1.0, column=0.0).seconds(some) == pytest.approx(2 * 2 * 2048**2 * (2048 / 6 + 35))
    measured = Rates.measured(torch.device("cpu"))
    assert min(measured.moments, measured.rounding, measured.column) > 0


def test_time_grows_with_what_is_asked_for() -> None:
    cost = StepCost(step_s=2.0, forward_s=0.5, batch=4, bytes=0)
    config = QuantizeConfig.build(iterations=2 * EVALUATE_EVERY, batch_size=8)
    # Both chains over 100 samples; steps of a batch twice as large; three judgements of 10 samples.
    assert cost.seconds(config, 100, 10, trained=True) == 2 * 100 / 8 + 2 * EVALUATE_EVERY * 2 * 2.0 + 3 * 10 / 8
    assert cost.seconds(config, 100, 10, trained=False) == 2 * 100 / 8


def test_memory_values_are_rows(tmp_path: Path) -> None:
    values = MemoryValues()
    rows = torch.arange(12.0).reshape(6, 2)
    values.write("x", 0, rows[:4])
    values.write("x", 4, rows[4:])
    assert torch.equal(values.read("x", torch.tensor([5, 0])), rows[[5, 0]])
    values.drop("x")
    assert "x" not in values


def test_the_command_writes_nothing(
    flow_pipeline: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = snapshot(flow_pipeline)
    flags = ["--steps", "2", "--calibration-samples", "2", "--iterations", "5", "--dry-run"]
    assert run(["quantize", str(flow_pipeline), "-o", str(tmp_path / "out"), *flags, "--format", "json"]) == 0
    budget = json.loads(capfd.readouterr().out)
    before_it = {"calibration", "formats", "initialization", "rounding"}
    assert set(budget["seconds"]) == before_it | {"distillation", "output bias", "judging distillation", "cost of each step", "total"}
    assert budget["refused"] is None
    (strict := tmp_path_factory.mktemp("strict") / "options.json").write_text('{"max_float_share": 0}')
    flags += ["--dilation", "none", "--config", str(strict)]
    assert run(["quantize", str(flow_pipeline), "-o", str(tmp_path / "out"), *flags]) == 0
    text, said = capfd.readouterr()
    assert re.search(r"turned off by options\W+dilation\W", text)
    assert "Dilation is chosen" not in said
    assert "Weights are symmetric" in said
    assert re.search(r"quantize would not begin: .* would stay in float, more than 0.0%: conv_in", said)
    for word in ("mid_block.resnets.0", "trained parameters", "conv_in", "memory: peak", "disk: peak", "time: total"):
        assert word in text
    assert snapshot(tmp_path) == {}
    assert snapshot(flow_pipeline) == before
