"""Small graphs around one attention, each with something else about it, and whether the compiler fuses it.

The graph is out = softmax(q·kᵀ·E^-0.5)·v · Wₒ with q, k, v = x · W, in float, x [N, tokens, heads · E]; none of our rewrites is applied.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict

from benchmarks.patterns.float8 import FLOAT8
from benchmarks.patterns.sketch import BFLOAT16, FLOAT, FLOAT16, Sketch
from dq_deploy.engines.build.process import run_child
from dq_deploy.engines.build.request import BuildRequest, ShapeRange
from dq_deploy.engines.descriptors.descriptor import capability_of
from dq_deploy.engines.layer_report.kernels import LayerDump
from dq_deploy.engines.tensorrt.layer_dump import parse_dump
from dq_deploy.errors import ArtifactError

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
_SCORES, _VALUES = "scores/MatMul", "values/MatMul"
_NOT_KERNELS = ("shape_call", "signal", "wait")


@dataclass(frozen=True)
class Case:
    """An attention. ``pad``: zeros up to so many channels a head; ``first``: the channels stand in front of the tokens.

    ``before`` and ``behind`` change the scores and the probabilities. ``fp8``: q, k and v are FP8 codes, with constant scales.
    """

    size: int = 64
    value_size: int | None = None
    heads: int = 4
    tokens: int = 256
    keys: int | None = None
    dtype: ir.DataType = FLOAT16
    pad: int | None = None
    first: bool = False
    folded: bool = False
    fp8: bool = False
    before: Callable[[_Writer, ir.Value], ir.Value] | None = None
    behind: Callable[[_Writer, ir.Value], ir.Value] | None = None


class Outcome(BaseModel):
    """What the compiler did with a case: by compute capability, kernels and whether one of them is the attention, or its refusal."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    fused: dict[str, bool] = {}
    kernels: dict[str, int] = {}
    refused: dict[str, str] = {}


@dataclass
class _Writer:
    case: Case
    sketch: Sketch = field(init=False)

    def __post_init__(self) -> None:
        self.sketch = Sketch(*self.shape(self.case.tokens))

    def shape(self, tokens: int) -> tuple[int, int]:
        width = self.case.heads * self.case.size
        return (width, tokens) if self.case.first else (tokens, width)

    def number(self, value: float) -> ir.Value:
        return self.sketch.constant(f"number.{value}", np.asarray(value, self.case.dtype.numpy()), self.case.dtype)

    def array(self, name: str, value: np.ndarray) -> ir.Value:
        return self.sketch.constant(name, value.astype(self.case.dtype.numpy()), self.case.dtype)

    def sizes(self, *values: int) -> ir.Value:
        return self.sketch.constant(f"sizes.{values}", np.array(values, np.int64))

    def projected(self, x: ir.Value, name: str, outputs: int) -> ir.Value:
        width = self.case.heads * self.case.size
        shape = (outputs, width) if self.case.first else (width, outputs)
        weight = self.array(f"{name}.weight", self.sketch.random.normal(0, 0.02, shape))
        return self.sketch.op("MatMul", *((weight, x) if self.case.first else (x, weight)), name=f"{name}/MatMul")

    def split(self, x: ir.Value, name: str, tokens: int, size: int) -> ir.Value:
        """Heads [N, H, tokens, size] (k: [N, H, size, tokens]), or folded into the batch."""
        case, op = self.case, self.sketch.op
        if case.first:
            x = op("Reshape", x, self.sizes(0, case.heads, size, tokens), name=f"{name}/Split")
            x = x if name == "k" else op("Transpose", x, name=f"{name}/Transpose", perm=[0, 1, 3, 2])
        else:
            x = op("Reshape", x, self.sizes(0, tokens, case.heads, size), name=f"{name}/Split")
            x = op("Transpose", x, name=f"{name}/Transpose", perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3])
        if case.pad:
            amounts = np.zeros(8, np.int64)
            amounts[-2 if name == "k" else -1] = case.pad - size
            x = op("Pad", x, self.sketch.constant(f"pads.{name}", amounts), name=f"{name}/Pad")
        if case.folded:
            channels = case.pad or size
            x = op("Reshape", x, self.sizes(-1, *((channels, tokens) if name == "k" else (tokens, channels))), name=f"{name}/Fold")
        return x

    def codes(self, x: ir.Value, name: str, scale: float) -> ir.Value:
        """FP8 codes of a value, and what they stand for."""
        pair = self.number(scale), self.sketch.constant("zero.fp8", np.array(0, FLOAT8.numpy()))
        return self.sketch.qdq(x, pair, f"{name}/codes")

    def joined(self, y: ir.Value, size: int) -> ir.Value:
        case, op = self.case, self.sketch.op
        if case.folded:
            y = op("Reshape", y, self.sizes(-1, case.heads, case.tokens, case.pad or size), name="o/Unfold")
        if case.pad:
            y = op("Slice", y, self.sizes(0), self.sizes(size), self.sizes(-1), name="o/Cut")
        y = op("Transpose", y, name="o/Transpose", perm=[0, 1, 3, 2] if case.first else [0, 2, 1, 3])
        shape = (0, case.heads * size, case.tokens) if case.first else (0, case.tokens, case.heads * size)
        return op("Reshape", y, self.sizes(*shape), name="o/Join")

    def model(self) -> onnx.ModelProto:
        case, op = self.case, self.sketch.op
        x = self.sketch.cast(self.sketch.sample, case.dtype, "x/Cast")
        keys, value_size = case.keys or case.tokens, case.value_size or case.size
        context = x
        if case.keys:
            axis = 2 if case.first else 1
            context = op("Slice", x, self.sizes(0), self.sizes(keys), self.sizes(axis), name="context/Slice")
        q = self.split(self.projected(x, "q", case.heads * case.size), "q", case.tokens, case.size)
        k = self.split(self.projected(context, "k", case.heads * case.size), "k", keys, case.size)
        v = self.split(self.projected(context, "v", case.heads * value_size), "v", keys, value_size)
        if case.fp8:
            q, k, v = (self.codes(x, name, 0.05) for x, name in ((q, "q"), (k, "k"), (v, "v")))
        scores = op("Mul", op("MatMul", q, k, name=_SCORES), self.number(case.size**-0.5), name="scale/Mul")
        scores = case.before(self, scores) if case.before else scores
        p = op("Softmax", scores, name="p/Softmax", axis=-1)
        p = case.behind(self, p) if case.behind else p
        y = self.joined(op("MatMul", p, v, name=_VALUES), value_size)
        weight = self.array("o.weight", self.sketch.random.normal(0, 0.02, (case.heads * value_size, case.heads * value_size)))
        y = op("MatMul", *((weight, y) if case.first else (y, weight)), name="o/MatMul")
        model = self.sketch.model(self.sketch.cast(y, FLOAT, "y/Cast"), rank=3)
        model.opset_import[0].version = 22  # the first with all products of bf16
        return model


def _in_fp8(w: _Writer, p: ir.Value) -> ir.Value:
    return w.codes(p, "p", 1 / 448)


def _causal(w: _Writer, y: ir.Value) -> ir.Value:
    tokens = w.case.tokens
    return w.sketch.op("Add", y, w.array("causal", np.triu(np.full((tokens, tokens), -6e4), 1)), name="mask/Add")


def _chosen(w: _Writer, y: ir.Value) -> ir.Value:
    visible = w.sketch.constant("visible", np.tri(w.case.tokens).astype(bool))
    return w.sketch.op("Where", visible, y, w.number(-6e4), name="mask/Where")


def _biased(w: _Writer, y: ir.Value) -> ir.Value:
    bias = w.sketch.random.normal(size=(w.case.heads, w.case.tokens, w.case.tokens))
    return w.sketch.op("Add", y, w.array("bias", bias), name="bias/Add")


def _in_fp32(w: _Writer, y: ir.Value) -> ir.Value:
    wide = w.sketch.op("Mul", w.sketch.cast(y, FLOAT, "wide/Cast"), w.sketch.constant("half", np.float32(0.5)), name="wide/Mul")
    return w.sketch.cast(wide, w.case.dtype, "narrow/Cast")


def _capped(w: _Writer, y: ir.Value) -> ir.Value:
    return w.sketch.op("Mul", w.sketch.op("Tanh", y, name="cap/Tanh"), w.number(30.0), name="cap/Mul")


def _clipped(w: _Writer, y: ir.Value) -> ir.Value:
    return w.sketch.op("Clip", y, w.number(-100.0), w.number(100.0), name="bound/Clip")


def _times_number(w: _Writer, p: ir.Value) -> ir.Value:
    return w.sketch.op("Mul", p, w.number(0.9), name="drop/Mul")


def _times_mask(w: _Writer, p: ir.Value) -> ir.Value:
    return w.sketch.op("Mul", p, w.array("kept", np.tri(w.case.tokens)), name="drop/Mul")


CASES: dict[str, Case] = {
    **{f"heads of {size}": Case(size) for size in (4, 8, 12, 16, 24, 40, 64, 72, 80, 96, 128, 160, 256, 264, 320, 512)},
    "heads of 4, padded to 16": Case(4, pad=16), "heads of 8, padded to 16": Case(8, pad=16), "heads of 20, padded to 24": Case(20, pad=24),
    "bf16": Case(dtype=BFLOAT16), "fp32": Case(dtype=FLOAT),
    "q, k and v in FP8": Case(fp8=True), "q, k, v and the probabilities in FP8": Case(fp8=True, behind=_in_fp8),
    "16 tokens": Case(tokens=16), "100 tokens": Case(tokens=100), "4096 tokens": Case(tokens=4096),
    "77 keys, heads of 40": Case(40, keys=77),
    "values of 32 channels": Case(value_size=32),
    "one head": Case(heads=1), "one head, padded to 72": Case(heads=1, pad=72), "heads folded into the batch": Case(folded=True),
    "mask that is added": Case(before=_causal), "mask that chooses": Case(before=_chosen), "bias for each head": Case(before=_biased),
    "scores scaled in fp32": Case(before=_in_fp32), "scores clipped": Case(before=_clipped), "scores through tanh": Case(before=_capped),
    "probabilities times a number": Case(behind=_times_number), "probabilities times a mask": Case(behind=_times_mask),
    "channels in front": Case(first=True), "channels in front, padded to 72": Case(first=True, pad=72),
    "channels in front, one head": Case(first=True, heads=1),
    "channels in front, one head, padded to 72": Case(first=True, heads=1, pad=72),
}  # fmt: skip


def probe(case: Case) -> Outcome:
    """Build a case for every compute capability."""
    fused, kernels, refused = {}, {}, {}
    for capability in CAPABILITIES:
        try:
            dump = _built(_Writer(case).model(), capability)
        except ArtifactError as error:
            refused[capability] = " ".join(error.message.split())[:160]
            continue
        fused[capability] = any({_SCORES, _VALUES} <= set(kernel.nodes) for kernel in dump.kernels)
        kernels[capability] = sum(kernel.type not in _NOT_KERNELS for kernel in dump.kernels)
    return Outcome(fused=fused, kernels=kernels, refused=refused)


def _sizes(shape: list[int]) -> ShapeRange:
    """A batch of 1, 2 and 4."""
    return (1, *shape[1:]), (2, *shape[1:]), (4, *shape[1:])


def _built(model: onnx.ModelProto, capability: str) -> LayerDump:
    profile = {value.name: _sizes([dim.dim_value for dim in value.type.tensor_type.shape.dim]) for value in model.graph.input}
    with tempfile.TemporaryDirectory(prefix="dq-deploy-attention-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        request = BuildRequest(
            backend="tensorrt-rtx", onnx=str(folder / "model.onnx"), plan=str(folder / "plan"), result=str(folder / "result.json"),
            compute_capability=capability_of(capability), profiles=[profile],
        )  # fmt: skip
        dump = parse_dump(run_child(request, folder, timeout_s=300).log)
    assert dump is not None, "TensorRT-RTX printed no kernel list"
    return dump
