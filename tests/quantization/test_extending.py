"""A quantizer, a form of weight and a number format of somebody else's, from the plan to the forward of a loaded checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file
from torch.fx import GraphModule

from dq_deploy.decibels import snr_db
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.errors import ArtifactError
from dq_deploy.exporters import export
from dq_deploy.exporters.lower import QuantizerPlace, scale
from dq_deploy.formats import Granularity, Kind, NumberFormat, ScaleSource, of_bits, register_format
from dq_deploy.quantization import quantizers, weights
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph import plan as plans
from dq_deploy.quantization.graph.plan import Plan, make_plan
from dq_deploy.quantization.integrity import read_format
from dq_deploy.quantization.quantizers import ActivationQuantizer
from dq_deploy.quantization.quantizers.observation import Observation
from dq_deploy.quantization.table_rows import between
from dq_deploy.quantization.weights import QuantizedLinear
from tests.tiny import PlainUNet, make_checkpoint, resealed


class TokenQuantizer(ActivationQuantizer):
    """A scale for each token, or for each sample where there are none, computed from its values: s = max|x| / 127."""

    kind = "toy-token"
    granularity = Granularity.TOKEN
    source = ScaleSource.COMPUTED
    counted = False
    seen: torch.Tensor

    def __init__(self, timesteps: torch.Tensor, fmt: NumberFormat, **options: Any) -> None:
        super().__init__(timesteps, fmt, **(options | {"symmetric": True}))
        self.register_buffer("seen", torch.ones(self.table_rows))

    @classmethod
    def from_tensors(cls, name: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], timesteps: torch.Tensor,
                     gaps: int) -> Self:  # fmt: skip
        options = {key: config[key] for key in ("symmetric", "axis", "channels")}
        made = cls(between(timesteps, gaps).float(), read_format(name, config), **options)
        made.seen.copy_(between(tensors[f"{name}.seen"], gaps))
        made.dilation.copy_(tensors[f"{name}.dilation"])
        return made

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"seen": self.seen, "dilation": self.dilation}

    def calibrate(self, seen: Observation, config: QuantizeConfig) -> None:  # noqa: ARG002
        self.seen.copy_(torch.maximum(-seen.low, seen.high) / self.format.largest)

    def freeze(self) -> None:
        pass

    def scale_table(self) -> torch.Tensor:
        return self.seen

    def scales(self, x: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        tokens = self.axis == -1 and x.dim() > 2
        largest = x.abs().amax(dim=-1, keepdim=True) if tokens else x.abs().flatten(1).amax(dim=1)
        scale = largest.clamp(min=1e-20) / self.format.largest
        return scale, torch.zeros_like(scale)


BOOK = torch.arange(-126, 127, 18, dtype=torch.int8)


class BookLinear(QuantizedLinear):
    """Weights from a codebook of 15 integers: W = s[o] · book[index]."""

    kind = "toy-book"

    def freeze(self) -> None:
        codes, scale = self.integer_weight()
        self.set_frozen(BOOK[(codes.detach()[..., None] - BOOK).abs().argmin(dim=-1)], scale.detach().clone())

    def tensors(self) -> dict[str, torch.Tensor]:
        stored = super().tensors()
        index = torch.bucketize(stored.pop("weight.codes"), BOOK)
        return stored | {"weight.index": index.to(torch.uint8)}

    @classmethod
    def from_tensors(cls, name: str, config: Mapping[str, Any], tensors: dict[str, torch.Tensor], bias: str) -> Self:
        return super().from_tensors(name, config, tensors | {f"{name}.weight.codes": BOOK[tensors[f"{name}.weight.index"].long()]}, bias)


quantizers.register(TokenQuantizer)
weights.register(BookLinear)
TERNARY = register_format(NumberFormat("TOY-TERNARY", 2, Kind.INTEGER, -1, 1, "int8", "INT4", 4))


@pytest.fixture
def replanned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[Plan], None]], Checkpoint]:
    """A checkpoint of ``PlainUNet`` whose plan a function has changed, trained for two steps."""

    def made(change: Callable[[Plan], None]) -> Checkpoint:
        def planned(graph: GraphModule, config: QuantizeConfig) -> Plan:
            plan = make_plan(graph, config)
            change(plan)
            return plan

        monkeypatch.setattr(plans, "make_plan", planned)
        return make_checkpoint(PlainUNet(), tmp_path / "checkpoint", iterations=2, dilation="none", activations="per-timestep")

    return made


def graph_of(checkpoint: Checkpoint) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint.artifact.path / "graph.json").read_text())
    return found


def test_a_quantizer_of_ones_own_goes_the_whole_way(replanned: Callable[[Callable[[Plan], None]], Checkpoint]) -> None:
    checkpoint = replanned(lambda plan: setattr(plan, "quantizer", "toy-token"))
    kinds = {name: type(quantizer) for name, quantizer in checkpoint.quantizers.items()}
    assert set(kinds.values()) == {TokenQuantizer, quantizers.ProbabilityQuantizer}
    assert graph_of(checkpoint)["quantizers"]["qkv.input"]["kind"] == "toy-token"
    assert min(checkpoint.details.snr_db["after_distillation"]) > 25
    quantizer, layer = checkpoint.quantizers["qkv.input"], checkpoint.layers["qkv"]
    x = torch.randn(2, 5, 16)
    codes, scale = quantizer(x, torch.tensor([1.0, 900.0]))
    assert scale.shape == (2, 5, 1)
    assert codes.abs().amax(dim=-1).tolist() == [[127.0] * 5] * 2
    assert bool(((codes * scale - x / quantizer.dilation).abs() <= scale * 0.501).all())
    assert layer.frozen is not None
    expected = (codes * scale) @ (layer.frozen[0] * layer.frozen[1][:, None]).T
    torch.testing.assert_close(layer(quantizers.Quantized(codes, scale)), expected, rtol=1e-4, atol=1e-5)


@scale.register
def computed_scale(quantizer: TokenQuantizer, at: QuantizerPlace) -> ir.Value:
    """The same scale as nodes: [N, ..., 1] of tokens, or [N]."""
    rank = len(at.x.shape or ())
    tokens = quantizer.axis == -1 and rank > 2
    axes = at.emit.constant(f"{at.name}.axes", np.array([-1] if tokens else range(1, rank), dtype=np.int64))
    largest = at.emit.op("ReduceMax", [at.emit.op("Abs", [at.x]), axes], keepdims=int(tokens))
    largest = at.emit.op("Max", [largest, at.emit.constant(f"{at.name}.least", np.float32(1e-20))])
    found = at.emit.op("Div", [largest, at.emit.constant(f"{at.name}.largest", np.float32(quantizer.format.largest))], name="scale")
    found.shape = ir.Shape(["batch", *([None] * (rank - 2) + [1] if tokens else [])])
    return found


def test_a_quantizer_of_ones_own_is_exported_too(
    replanned: Callable[[Callable[[Plan], None]], Checkpoint], tmp_path: Path
) -> None:  # fmt: skip
    """Its scales are nodes of the graph; between Q/DQ with scale 1 they need nothing of the target."""
    checkpoint = replanned(lambda plan: setattr(plan, "quantizer", "toy-token"))
    bundle = export(checkpoint.artifact, tmp_path / "bundle", target="qdq", dtype="fp32")
    x, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 300.0, 900.0])
    got = torch.from_numpy(OnnxRuntimeRunner(bundle).run({"x": x.numpy(), "timestep": t.numpy()}))
    with torch.no_grad():
        assert snr_db(checkpoint.model(x, t), got) > 40


def test_a_form_of_weight_of_ones_own_goes_the_whole_way(replanned: Callable[[Callable[[Plan], None]], Checkpoint]) -> None:
    def change(plan: Plan) -> None:
        for layer in plan.layers:
            layer.form = "toy-book" if layer.op == "linear" else None

    checkpoint = replanned(change)
    linear = {name: layer for name, layer in checkpoint.layers.items() if layer.kind == "toy-book"}
    assert set(linear) == {"embed.0", "embed.2", "qkv", "out"}
    stored = load_file(checkpoint.artifact.path / "model.safetensors")
    for name, layer in linear.items():
        assert layer.frozen is not None
        assert f"{name}.weight.codes" not in stored
        assert torch.equal(layer.frozen[0], BOOK[stored[f"{name}.weight.index"].long()])
        assert len(layer.frozen[0].unique()) > 5
    assert min(checkpoint.details.snr_db["after_distillation"]) > 15


def test_a_number_format_of_ones_own_goes_the_whole_way(replanned: Callable[[Callable[[Plan], None]], Checkpoint]) -> None:
    def change(plan: Plan) -> None:
        next(layer for layer in plan.layers if layer.name == "out").weight_format = TERNARY
        next(layer for layer in plan.layers if layer.name == "up").activation_format = TERNARY

    checkpoint = replanned(change)
    graph, layer, quantizer = graph_of(checkpoint), checkpoint.layers["out"], checkpoint.quantizers["up.input"]
    assert graph["layers"]["out"] == {"op": "linear", "format": "TOY-TERNARY", "shape": [16, 16]}
    assert graph["quantizers"]["up.input"]["format"] == "TOY-TERNARY"
    assert layer.frozen is not None
    assert layer.frozen[0].unique().tolist() == [-1, 0, 1]
    assert quantizer.format is TERNARY
    codes, _ = quantizer(torch.randn(2, 16, 8, 8), torch.tensor([1.0, 900.0]))
    assert len(codes.unique()) in (2, 3, 4, 5)  # of either row, minus its zero-point


@pytest.mark.parametrize(("change", "words"), [
    ({"bits": 9}, "'qkv' has 9 bits; 2 to 8 are known"),
    ({"format": "INT9"}, "'qkv' has format INT9, which is not known here"),
    ({"op": "einsum"}, "'einsum' is not among the tensors, or is no kind that this version knows"),
])  # fmt: skip
def test_what_nobody_has_registered_is_refused(plain_checkpoint: Checkpoint, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = tmp_path / "changed"
    folder.mkdir()
    for file in plain_checkpoint.artifact.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    graph = graph_of(plain_checkpoint)
    graph["layers"]["qkv"].update(change)
    (folder / "graph.json").write_text(json.dumps(graph))
    with pytest.raises(ArtifactError, match=words):
        load_checkpoint(resealed(folder))


def test_every_kind_is_registered_under_its_own_name() -> None:
    assert all(kind.kind == name for name, kind in (quantizers.QUANTIZERS | weights.LAYERS).items())
    assert quantizers.kind_of({"fixed": True}) is quantizers.ProbabilityQuantizer
    assert quantizers.kind_of({"fixed": False}) is quantizers.TableQuantizer
    assert of_bits(8).record() == {"bits": 8}
