"""Tiny models, checkpoints and sessions for the tests of quantization and export. Session fixtures: read them, do not change them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.fx import GraphModule

from dq_deploy.artifacts import Artifact, sha256_file
from dq_deploy.exporters.exact_sums import make_exact, saturates
from dq_deploy.quantization.calibration.sampling_loop import SamplingLoop
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.quantization.choices import Dilation
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.blocks import assign_blocks
from dq_deploy.quantization.graph.capture import capture
from dq_deploy.quantization.graph.plan import Plan, make_plan
from dq_deploy.quantization.graph.positional import input_names
from dq_deploy.quantization.initial.initialize import initialize
from dq_deploy.quantization.pipeline import copy_with_quantizers, quantize
from tests.shared import made_once

FAST: dict[str, Any] = {
    "steps": 4,
    "calibration_samples": 8,
    "reference_samples": 2,
    "iterations": 0,
    "dilation": "symmetric",  # "auto" tries this rule and four others
    "rounding": "nearest",
    "batch_size": 8,
    "max_float_share": 0.5,  # the first layer weighs more in a tiny model
}
SHAPE = (1, 8, 8)
WIDTHS = (8, 4, 3)
"""Of ``nested_checkpoint``."""
WHOLE: dict[str, dict[str, Any]] = {"qdq": {}, "onnxruntime": {"convolutions": "integer"}}
"""By target: options of an export in which every layer that is quantized is an integer one, few as its channels are."""


def scheduler() -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=1000)


def seeded_noise(shape: tuple[int, ...], seeds: range) -> torch.Tensor:
    """What a walk begins with: noise [len(seeds), *shape], each sample's from a generator of its own."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def tiny_unet(**options: Any) -> UNet2DModel:
    """A UNet with ResNet blocks, attention, down- and upsampling; one channel of 8×8."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**{**config, **options}).eval()


class PlainUNet(nn.Module):
    """No diffusers: called (x, t), attention by bmm, and convolutions with stride, dilation, groups and without bias."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.width = width
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.embed = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width, bias=False))
        self.norm = nn.GroupNorm(2, width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.grouped = nn.Conv2d(2 * width, 2 * width, 3, padding=(2, 2), dilation=2, groups=2)
        self.qkv = nn.Linear(2 * width, 6 * width, bias=False)
        self.out = nn.Linear(2 * width, 2 * width)
        self.up = nn.Conv2d(2 * width, width, (1, 3), padding=(0, 1))
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        frequencies = torch.exp(-torch.arange(self.width // 2, device=x.device) * 1.5)
        angles = t[:, None].float() * frequencies
        time = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))
        h = self.first(x)
        h = h + time[:, :, None, None]
        h = self.down(F.silu(self.norm(h)))
        h = h + self.grouped(F.silu(self.depthwise(F.silu(h))))
        tokens = h.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) / q.shape[-1] ** 0.5, dim=-1)
        tokens = tokens + self.out(torch.bmm(weights, v))
        h = tokens.transpose(1, 2).reshape(h.shape)
        h = self.up(F.interpolate(h, scale_factor=2.0))
        return self.last(F.silu(h))


def captured(model: nn.Module, shape: tuple[int, ...] = SHAPE, **conditions: torch.Tensor) -> GraphModule:
    names = input_names(model, list(conditions))
    torch.manual_seed(2)
    examples = {names[0]: torch.randn(2, *shape), "timestep": torch.tensor([1.0, 2.0]), **{k: v[:2] for k, v in conditions.items()}}
    return capture(model, {name: examples[name] for name in names})


def targets(graph: GraphModule) -> list[str]:
    """Operators that a captured graph calls, in order."""
    return [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]


def planned(graph: GraphModule, **options: Any) -> Plan:
    return make_plan(graph, QuantizeConfig.build(**{**FAST, **options}))


def trajectories(graph: GraphModule, *, seeds: int = 8, steps: int = 4, shape: tuple[int, ...] = SHAPE) -> Trajectories:
    return SamplingLoop(scheduler(), steps, shape).collect(graph, range(seeds), batch_size=8)


def quantized_copy(graph: GraphModule, data: Trajectories, *, rule: Dilation = Dilation.AUTO, **options: Any) -> tuple[GraphModule, Plan]:
    """A copy of a captured graph with initialized quantizers; blocks are assigned in both."""
    plan = planned(graph, **options)
    assign_blocks(graph, plan)
    quantized = copy_with_quantizers(graph, plan, data.timesteps)
    initialize(graph, quantized, data, QuantizeConfig.build(**{**FAST, "dilation": rule, **options}))
    return quantized, plan


def make_checkpoint(model: Any, output: Path, *, shape: tuple[int, ...] = SHAPE, **options: Any) -> Checkpoint:
    """Quantize a module (with scheduler and shape) or a path, fast, and load the checkpoint."""
    needed = {"scheduler": scheduler(), "sample_shape": shape} if isinstance(model, nn.Module) else {}
    quantize(model, output, **needed, **{**FAST, **options})
    return load_checkpoint(output)


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """Change a checkpoint's tensors in place."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    return resealed(path)


def resealed(path: Path) -> Path:
    """Make the manifest agree with the files again, as one who tampers would."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        entry.update(sha256=sha256_file(path / name), size=(path / name).stat().st_size)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def session(bundle: Artifact | Path) -> onnxruntime.InferenceSession:
    """An onnxruntime session that runs the graph as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    path = bundle.path / "model.onnx" if isinstance(bundle, Artifact) else bundle
    if saturates():
        model = ir.load(path)
        make_exact(model)
        ir.external_data.load_to_model(model)
        return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(bundle: Artifact | Path, sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
    """The bundle's output for a batch. A graph of one timestep is run sample by sample."""
    running = session(bundle)
    names = [i.name for i in running.get_inputs()]
    one = next(i for i in running.get_inputs() if i.name == "timestep").shape == [1]
    feeds = {names[0]: sample.numpy(), "timestep": timestep.float().numpy(), **{k: v.numpy() for k, v in conditions.items()}}
    if not one:
        return torch.from_numpy(running.run(None, feeds)[0])
    rows = [running.run(None, {k: v[i : i + 1] for k, v in feeds.items()})[0] for i in range(len(sample))]
    return torch.from_numpy(np.concatenate(rows))


def snr_db(expected: torch.Tensor, got: torch.Tensor) -> float:
    noise = (expected - got).double().pow(2).sum().clamp(min=1e-30)
    return float(10 * torch.log10(expected.double().pow(2).sum() / noise))


@pytest.fixture(scope="session")
def unet_graph() -> GraphModule:
    """``tiny_unet`` captured. Copy it before a rewrite."""
    return captured(tiny_unet(dropout=0.1))


@pytest.fixture(scope="session")
def plain_graph() -> GraphModule:
    """``PlainUNet`` captured."""
    return captured(PlainUNet())


@pytest.fixture(scope="session")
def plain_data(plain_graph: GraphModule) -> Trajectories:
    """Four timesteps, eight seeds of ``PlainUNet``."""
    return trajectories(plain_graph)


@pytest.fixture(scope="session")
def attention_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPMPipeline folder around ``tiny_unet``."""
    return made_once(tmp_path_factory, "attention", DDPMPipeline(unet=tiny_unet(), scheduler=scheduler()).save_pretrained)


@pytest.fixture(scope="session")
def unet_checkpoint(tmp_path_factory: pytest.TempPathFactory, attention_pipeline: Path) -> Checkpoint:
    """W8A8 of ``attention_pipeline``, four timesteps, not distilled."""
    return load_checkpoint(made_once(tmp_path_factory, "unet", lambda path: quantize(attention_pipeline, path, **FAST)))


@pytest.fixture(scope="session")
def plain_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """W8A8 of ``PlainUNet``."""
    return load_checkpoint(made_once(tmp_path_factory, "plain", lambda path: make_checkpoint(PlainUNet(), path)))


@pytest.fixture(scope="session")
def nested_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """``PlainUNet`` with weights of 8, 4 and 3 bits, of which one layer has 6 whatever the others have."""

    def make(path: Path) -> None:
        make_checkpoint(PlainUNet(), path, rounding="gptq", matryoshka=WIDTHS, keep={"qkv": 6})

    return load_checkpoint(made_once(tmp_path_factory, "nested", make))
