"""The float parts between products, each fed what reaches its edges: zeros, tiny, large and one-sided values.

An epsilon shows only where what it is added to vanishes, which no reference sample may do. So the graph is cut behind every product, and
what it makes of the cuts is compared with the PyTorch forward, cut likewise. Rounding counts as far as PyTorch's own result moves when its
inputs do by as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from pydantic import BaseModel
from torch.fx import GraphModule, Interpreter, Node

from ..artifacts import Artifact
from ..artifacts.details import BundleDetails
from ..exporters.session import session_as_written
from ..quantization.calibration.trajectories import Trajectories
from ..quantization.checkpoint import Checkpoint
from ..quantization.graph.edit import aten
from ..quantization.graph.insertion import decode
from ..quantization.quantizers import ActivationQuantizer
from .cut_graph import CutGraph
from .recording import layer_outputs

Fed = dict[str, torch.Tensor]
_FACTORS = {"as recorded": 1.0, "zeros": 0.0, "small": 2.0**-20, "tiny": 2.0**-44, "large": 2.0**12}
_ONE_SIDED = ("large, all positive", "large, all negative")
_STEP = {"fp32": 1e-6, "fp16": 2.0**-10}
"""Rounding of inputs and of the steps behind them, relative; ``_FLOOR``: what is absolute in it, the spacing of numbers next to zero."""
_FLOOR = {"fp32": 1e-42, "fp16": 2.0**-24}
_TIMES = 50.0
_ULP = 2.0**-21  # of the network's own inputs; a few units of the last place, as exponentials and sines of the timestep differ by
_SEEDS = (0, 1)
_SIGNS = (1.0, -1.0)
_SQUARES = 2.0**-22
"""Rounding of a variance that is the mean of the squares less the square of the mean, as ONNX defines its norms, relative to the latter.
Beside a mean of 2500 a standard deviation of 0.5 is lost in it, and the variance may be negative."""
_BESIDE_ONE = 2.0**-24
"""Rounding of exp(x) before 1 is taken off, as ONNX Runtime's ELU and SELU do it: a tiny x is lost beside it, where torch has expm1."""
_APPROXIMATE = 1e-7  # of what is fed: ONNX Runtime's sigmoid ends at 1.5e-8, so that SiLU of −1000 is −1.5e-5
_ROOT = 1e17  # squares of ten thousand such numbers are the most that fp32 sums
_FARTHEST = 1e30  # JSON has no infinity
_NUMBERED = ("Add", "Sub", "Mul", "Div", "Clip", "Max", "Min")
_NORMS = (aten.group_norm.default, aten.layer_norm.default)
_LESS_ONE = (aten.elu.default, aten.selu.default, aten.celu.default, aten.expm1.default)
_WITH_A_NUMBER = (
    aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar, aten.mul.Tensor, aten.mul.Scalar,
    aten.div.Tensor, aten.div.Scalar, aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default,
)  # fmt: skip


class RegionParity(BaseModel):
    """One value at the end of a float part: ``error`` is the largest difference over what rounding allows, for the worst of the inputs.

    ``node`` is the PyTorch node that the graph does not compute and whose operands it does (None: it passed, or none was found).
    """

    value: str
    inputs: str
    error: float
    node: str | None = None

    @property
    def passed(self) -> bool:
        """NaN fails."""
        return bool(self.error <= 1)


@torch.no_grad()
def region_parity(bundle: Artifact[BundleDetails], checkpoint: Checkpoint, reference: Trajectories) -> list[RegionParity]:
    """Compare every quantizer's input and the network's output, with all products replaced by what is fed; the worst of every feed."""
    dtype = bundle.details.dtype
    cut = CutGraph(bundle)
    if not cut.ends:
        return []
    session = session_as_written(cut.model(list(cut.ends.values())))
    inputs, recorded = _recorded(checkpoint, reference)
    worst = {name: RegionParity(value=name, inputs="as recorded", error=-1.0) for name in cut.ends}
    feeds = dict(_feeds(recorded, dtype))
    constants = _Constants(cut, checkpoint) if dtype == "fp32" else None
    for kind, fed in feeds.items():
        run, moved = _both(checkpoint, fed, inputs, dtype)
        if constants:
            constants.judge(kind, run, moved, inputs)
        if _leaves_fp32(run):
            continue
        expected = run.found
        got = dict(zip(cut.ends, session.run(list(cut.ends.values()), cut.feeds(session, inputs, fed)), strict=True))
        for name in cut.ends:
            if name not in expected:
                continue
            error = _error(expected[name], torch.from_numpy(got[name]).float(), [m.found[name] for m in moved], dtype, run.largest)
            if not error <= worst[name].error:
                worst[name] = RegionParity(value=name, inputs=kind, error=error)
    failed = [row for row in worst.values() if not row.passed]
    if failed:
        _name_nodes(failed, cut, checkpoint, inputs, feeds, dtype)
    elif constants:
        return [*worst.values(), *constants.worst.values()]
    return [row for row in worst.values() if row.error >= 0 or not row.passed]


def _leaves_fp32(run: _Regions) -> bool:
    """Whether a feed has grown so large on its way that a sum of its squares is beyond fp32, which a norm may take in any order."""
    return any(value.is_floating_point() and bool((value.abs() > _ROOT).any()) for value in run.every.values())


def _error(expected: torch.Tensor, got: torch.Tensor, moved: list[torch.Tensor], dtype: str, fed: float) -> float:
    """In units of what rounding allows. Where PyTorch has no number, or its own result is not finite when moved, nothing is judged."""
    if got.shape != expected.shape:
        return _FARTHEST
    spread = torch.stack([(m - expected).abs() for m in moved]).amax(0)
    judged = torch.isfinite(expected) & torch.isfinite(spread)
    if dtype == "fp16":
        judged &= expected.abs() < 1e4
    if not bool(judged.any()):
        return 0.0
    reference, found = expected[judged], got[judged]
    largest = float(reference.abs().max())
    # Rounding inside a row (a norm's, a softmax's) spreads over it: the largest move anywhere near counts, not this element's own.
    allowed = _TIMES * (spread[judged] + float(spread[judged].mean())) + 20 * _STEP[dtype] * reference.abs() + _STEP[dtype] * largest
    allowed = allowed + _APPROXIMATE * fed + _FLOOR[dtype]
    ratio = (found - reference).abs() / allowed
    return min(float(ratio.max()), _FARTHEST) if bool(torch.isfinite(ratio).all()) else _FARTHEST


def _recorded(checkpoint: Checkpoint, reference: Trajectories) -> tuple[list[torch.Tensor], Fed]:
    """The first reference seed at the middle timestep, and what every product gives there."""
    row, first = len(reference.timesteps) // 2, slice(reference.per_seed)
    inputs = checkpoint.inputs(reference, row, first)
    return list(inputs.values()), layer_outputs(checkpoint, inputs)


def _feeds(recorded: Fed, dtype: str) -> Iterator[tuple[str, Fed]]:
    for kind, factor in _FACTORS.items():
        if dtype == "fp16" and kind in ("tiny", "large"):
            continue
        yield kind, {name: value * factor for name, value in recorded.items()}
    factor = _FACTORS["large"] if dtype == "fp32" else 64.0
    for kind, sign in zip(_ONE_SIDED, (1.0, -1.0), strict=True):
        yield kind, {name: sign * factor * (value.abs() + value.abs().mean()) for name, value in recorded.items()}


def _moved(fed: Fed, dtype: str, seed: int) -> Fed:
    generator = torch.Generator().manual_seed(seed)
    step, floor = _STEP[dtype], _FLOOR[dtype]
    moves = {name: torch.randn(value.shape, generator=generator) for name, value in fed.items()}
    return {name: value * (1 + step * moves[name]) + floor * moves[name] * (value != 0) for name, value in fed.items()}


class _Regions(Interpreter):
    """The reference forward with every product replaced by what is fed; keeps what quantizers and such products read.

    ``sign``: of the rounding that every norm's variance, and every exponential that 1 is taken from, is moved by; products of two
    activations that are left in float are moved too, by ``step``, which their operands' moves average out in.
    """

    def __init__(self, checkpoint: Checkpoint, fed: Fed, sign: float = 0.0, step: float = 0.0) -> None:
        super().__init__(checkpoint.model)
        self.fed, self.found, self.sign, self.step = fed, Fed(), sign, step
        self.generator = torch.Generator().manual_seed(int(sign > 0))
        self.largest = max((float(value.abs().max()) for value in fed.values()), default=0.0)
        self.every: dict[Node, torch.Tensor] = {}
        self.submodules = dict(checkpoint.model.named_modules())

    def values(self, inputs: list[torch.Tensor]) -> Fed:
        self.found["out_sample"] = self.run(*inputs)
        return self.found

    def run_node(self, n: Node) -> Any:
        if n.op == "call_module":
            name, read = decode(str(n.target)), self.env.get(n.args[0]) if isinstance(n.args[0], Node) else None
            if name in self.fed:
                if isinstance(read, torch.Tensor):
                    self.found[name] = read
                return self.fed[name]
            if isinstance(self.submodules[str(n.target)], ActivationQuantizer):
                self.found[n.meta["quantizer"]] = self.env[n.args[0]]  # type: ignore[index]
                return None  # only products read it
        result = super().run_node(n)
        if self.sign and n.target in _NORMS:
            result = _with_other_variance(result, self.sign, *self.fetch_args_kwargs_from_env(n)[0])
        if n.target in _LESS_ONE:
            result = result + self.sign * _BESIDE_ONE * (result < 0)
        if self.step and n.target == aten.matmul.default:
            result = result * (1 + self.step * torch.randn(result.shape, generator=self.generator))
        if isinstance(result, torch.Tensor):
            self.every[n] = result
        return result


def _with_other_variance(result: torch.Tensor, sign: float, x: torch.Tensor, over: int | list[int], _weight: torch.Tensor | None = None,
                         bias: torch.Tensor | None = None, epsilon: float = 1e-5, *_: Any) -> torch.Tensor:  # fmt: skip
    """A norm's result if its variance were rounded otherwise; NaN where nothing is left of it. ``over``: groups, or a shape."""
    rows = x.unflatten(1, (over, -1)).flatten(2) if isinstance(over, int) else x.flatten(-len(over))
    variance = rows.var(-1, keepdim=True, correction=0) + epsilon
    factor = (variance / (variance + sign * _SQUARES * rows.mean(-1, keepdim=True).square())).sqrt().expand_as(rows).reshape(x.shape)
    if bias is None:
        return result * factor
    shift = bias.reshape(-1, *(1,) * (x.dim() - 2)) if isinstance(over, int) else bias
    return (result - shift) * factor + shift


def _name_nodes(failed: list[RegionParity], cut: CutGraph, checkpoint: Checkpoint, inputs: list[torch.Tensor], feeds: Mapping[str, Fed],
                dtype: str) -> None:  # fmt: skip
    """Find for each failed end the node of the PyTorch forward whose value is nowhere in the graph, though those that it reads are."""
    values = [str(v.name) for node in cut.ir.graph for v in node.outputs if v.dtype in (None, ir.DataType.FLOAT, ir.DataType.FLOAT16)]
    session = session_as_written(cut.model(values))
    for row in failed:
        fed = feeds[row.inputs]
        run, moved = _both(checkpoint, fed, inputs, dtype)
        got = [
            torch.from_numpy(v).float() for v in session.run(None, cut.feeds(session, inputs, fed)) if v.dtype in (np.float32, np.float16)
        ]
        ends = {a for n in checkpoint.model.graph.nodes if _name_of(n) == row.value for a in n.all_input_nodes}
        found = {n: _is_there(run, moved, n, got, dtype) for n in run.every}
        row.node = next((_described(n) for n in _missing(checkpoint.model, ends, found)), None)


def _name_of(node: Node) -> str | None:
    """What an end is called that a node reads."""
    if node.op == "output":
        return "out_sample"
    return node.meta.get("quantizer") or (decode(str(node.target)) if node.op == "call_module" and "." in str(node.target) else None)


def _is_there(run: _Regions, moved: list[_Regions], node: Node, got: list[torch.Tensor], dtype: str) -> bool | None:
    """None where the value is zero all over, as many are."""
    if not bool(run.every[node].any()):
        return None
    return _distance(run, moved, node, got, dtype) <= 1


def _distance(run: _Regions, moved: list[_Regions], node: Node, got: list[torch.Tensor], dtype: str) -> float:
    """How far the nearest of the graph's values of this size is from a node's, in units of what rounding allows."""
    expected = run.every[node]
    if not expected.is_floating_point() or node.op in ("placeholder", "get_attr"):
        return 0.0
    nearest = _FARTHEST
    for value in (v for v in got if v.numel() == expected.numel()):
        others = [m.every[node].reshape(value.shape) for m in moved]
        nearest = min(nearest, _error(expected.reshape(value.shape), value, others, dtype, run.largest))
        if nearest <= 1:
            break
    return nearest


class _Constants:
    """Nodes behind products that take a number, and whose value the graph does not have: nothing may need to depend on it at its end."""

    def __init__(self, cut: CutGraph, checkpoint: Checkpoint) -> None:
        self.cut = cut
        self.nodes = [n for n in _behind_products(checkpoint.model) if n.target in _WITH_A_NUMBER and _number(n)]
        values = [str(v.name) for node in cut.ir.graph if _takes_a_number(node) for v in node.outputs] if self.nodes else []
        self.session = session_as_written(cut.model(values)) if values else None
        self.worst: dict[Node, RegionParity] = {}

    def judge(self, kind: str, run: _Regions, moved: list[_Regions], inputs: list[torch.Tensor]) -> None:
        """Of one feed, with the forwards on it."""
        got: list[torch.Tensor] = []
        if self.session:
            got = [torch.from_numpy(v).float() for v in self.session.run(None, self.cut.feeds(self.session, inputs, run.fed))]
        for node in self.nodes:
            error = _distance(run, moved, node, got, "fp32")
            if not error <= 1 and (node not in self.worst or error > self.worst[node].error):
                self.worst[node] = RegionParity(value=node.name, inputs=kind, error=error, node=_described(node))


def _takes_a_number(node: ir.Node) -> bool:
    return node.op_type in _NUMBERED and any(
        v is not None and v.const_value is not None and v.const_value.size == 1 and v.dtype == ir.DataType.FLOAT for v in node.inputs
    )


def _number(node: Node) -> bool:
    return any(isinstance(value, int | float) for value in node.args[1:]) and not node.kwargs


def _behind_products(model: GraphModule) -> Iterator[Node]:
    behind: set[Node] = set()
    for node in model.graph.nodes:
        if node.op == "call_module" or not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
            yield node


def _both(checkpoint: Checkpoint, fed: Fed, inputs: list[torch.Tensor], dtype: str) -> tuple[_Regions, list[_Regions]]:
    """The forward on what is fed, and on the same moved by what rounding does."""
    run = _Regions(checkpoint, fed)
    moved = [_Regions(checkpoint, _moved(fed, dtype, seed), sign, _STEP[dtype]) for seed, sign in zip(_SEEDS, _SIGNS, strict=True)]
    run.values(inputs)
    for seed, each in zip(_SEEDS, moved, strict=True):
        generator = torch.Generator().manual_seed(seed)
        each.values([x * (1 + _ULP * torch.randn(x.shape, generator=generator)) if x.is_floating_point() else x for x in inputs])
    return run, moved


def _missing(model: GraphModule, ends: set[Any], found: Mapping[Node, bool | None]) -> Iterator[Node]:
    """Nodes that are not there and lead to an end through others that are not, or of which nobody can tell; in the graph's order."""
    waiting, seen = [n for n in ends if isinstance(n, Node)], set()
    while waiting:
        node = waiting.pop()
        if node in seen or found.get(node, True):
            continue
        seen.add(node)
        waiting += node.all_input_nodes
    yield from (node for node in model.graph.nodes if node in seen and found[node] is False)


def _described(node: Node) -> str:
    """``add_3 = aten.add.Tensor(mean, 1e-10) in blocks.0.norm``."""
    arguments = ", ".join(map(str, (*node.args, *(f"{k}={v}" for k, v in node.kwargs.items()))))
    path = node.meta.get("path")
    return f"{node.name} = {node.target}({arguments})" + (f" in {path}" if path else "")
