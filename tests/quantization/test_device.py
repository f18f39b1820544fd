from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.fx import GraphModule

from dq_deploy import quantize
from dq_deploy.cli import run
from dq_deploy.errors import EnvironmentProblem, UsageError
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.checkpoint import load_checkpoint
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.distillation.trained import TrainedParts, selected
from dq_deploy.quantization.graph.blocks import split_blocks
from dq_deploy.quantization.running.device import find_device, move
from tests.tiny import FAST, SHAPE, PlainUNet, quantized_copy, scheduler, snr_db, trajectories


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cuda:x", "cuda:-1", "cpu:0", ""):
        with pytest.raises(UsageError, match=f"unknown device '{name}'\ndevices: cpu, cuda, or cuda:1"):
            find_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(EnvironmentProblem, match="'cuda:2' was requested, and torch sees 2 CUDA GPUs"):
        find_device("cuda:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(flow_pipeline: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for extra in ([], ["--dry-run"]):
        assert run(["quantize", str(flow_pipeline), "-o", str(tmp_path / "o"), "--device", "cuda", *extra]) == 4
        error = capfd.readouterr().err
        assert "device 'cuda' was requested, and torch sees 0 CUDA GPUs" in error
        assert "hint: leave the device out for cpu" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["plain", "unet"])
def test_no_tensor_is_made_on_the_wrong_device(kind: str, request: pytest.FixtureRequest) -> None:
    """Training with tensors that hold nothing, on a device that, like a GPU, does not mix with the CPU."""
    graph = deepcopy(request.getfixturevalue(f"{kind}_graph"))
    quantized, _ = quantized_copy(graph, trajectories(graph, seeds=2, steps=3), preset="w4a4")
    inputs = torch.empty(2, *SHAPE, device="meta"), torch.empty(2, device="meta")
    with pytest.raises(RuntimeError, match="device cpu is not on the expected device meta"):
        deepcopy(quantized).to("meta")(*inputs)
    move(quantized, "meta")
    trained_layers, quantizers = selected(quantized, ["*"])
    parts = [TrainedParts.of(block, trained_layers, quantizers) for block in split_blocks(quantized)]
    output = quantized(*inputs)
    assert output.device.type == "meta"
    output.sum().backward()
    parameters = [parameter for part in parts for parameter in part.parameters()]
    assert len(parameters) > 10
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in parameters)
    for part in parts:
        part.table_adam(QuantizeConfig.build("w4a4", **FAST)).step(torch.ones(3, dtype=torch.bool, device="meta"))


@pytest.mark.gpu
def test_a_gpu_makes_nearly_what_the_cpu_makes(tmp_path: Path) -> None:
    options = {**FAST, "iterations": 20, "preset": "w8a8"}
    x, t = torch.randn(8, *SHAPE), torch.tensor([0.0, 250.0, 500.0, 750.0]).repeat(2)
    expected = PlainUNet()(x, t).detach()
    for device in ("cpu", "cuda"):
        quantize(PlainUNet(), tmp_path / device, scheduler=scheduler(), sample_shape=SHAPE, device=device, **options)
    cpu, gpu = (load_checkpoint(tmp_path / device) for device in ("cpu", "cuda"))
    with torch.no_grad():
        assert abs(snr_db(expected, cpu.model(x, t)) - snr_db(expected, gpu.model(x, t))) < 1
    assert cpu.artifact.manifest.quantization == gpu.artifact.manifest.quantization
    assert [n.target for n in cpu.model.graph.nodes] == [n.target for n in gpu.model.graph.nodes]


def test_moving_to_where_it_is_changes_nothing(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    graph = deepcopy(plain_graph)
    code = graph.code
    samples, timestep, _ = plain_data.flat(slice(None))
    before = graph(samples, timestep)
    assert move(graph, "cpu").code == code
    assert torch.equal(graph(samples, timestep), before)
