"""First values of every scale table and dilation vector, from one pass of the float model over all timesteps at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ..errors import ArtifactError
from ..progress import Progress, silent
from . import numerics
from .calibration import Trajectories
from .config import Dilation, InitialRange
from .dilation import asymmetric_bound, candidates, dilate, symmetric_bound
from .layers import ActivationQuantizer, QuantizedWeight
from .plan import decode, float_name

_SHRINK = torch.logspace(0, -2, 20, base=2)  # candidate clipping ranges, 1 … 1/4 of min–max
_SEARCH_ELEMENTS = 4096  # per timestep; the optimum of a one-dimensional search is known well enough from these
_MIN_MAX_BITS = 6  # docs/decisions/initial-range.md
_WORTHWHILE = 0.99  # a dilation must lower the measured error to this, or rounding's luck decides


@dataclass
class Group:
    """A quantizer, the layers that read it, and whether its range may clip (see ``search_tables``)."""

    name: str
    quantizer: ActivationQuantizer
    clip: bool
    layers: dict[str, QuantizedWeight] = field(default_factory=dict)


@dataclass(frozen=True)
class DilationRecord:
    """What dilation did to one tensor: share of input channels with s > 1 allowed and used, Δ'x/Δx, output error with / without."""

    quantizer: str
    choice: str
    unsaturated_share: float
    dilated_share: float
    range_ratio: float
    error_ratio: float


def quantizer_groups(graph_module: GraphModule, initial_range: InitialRange = InitialRange.AUTO) -> dict[str, list[Group]]:
    """Float-graph value name → groups that quantize it."""
    found: dict[str, list[Group]] = {}
    for node in graph_module.graph.nodes:
        if "quantizer" not in node.meta:
            continue
        quantizer = graph_module.get_submodule(str(node.target))
        assert isinstance(quantizer, ActivationQuantizer)
        few_bits = quantizer.bits < _MIN_MAX_BITS
        clip = few_bits if initial_range is InitialRange.AUTO else initial_range is InitialRange.MSE
        group = Group(decode(str(node.target)), quantizer, clip)
        for user in node.users:
            module = graph_module.get_submodule(str(user.target))
            if isinstance(module, QuantizedWeight):
                group.layers[decode(str(user.target))] = module
        source = node.args[0]
        assert isinstance(source, Node)
        found.setdefault(float_name(source), []).append(group)
    return found


@torch.no_grad()
def initialize(float_graph: GraphModule, quantized: GraphModule, data: Trajectories, seeds: int, rule: Dilation,
               progress: Progress = silent, *, initial_range: InitialRange = InitialRange.AUTO) -> list[DilationRecord]:  # fmt: skip
    """Set every quantizer's dilation and tables from ``seeds`` of the trajectories, all timesteps in one pass.

    Raises ArtifactError naming value, timestep and seed where an activation is NaN or Inf.
    """
    groups = quantizer_groups(quantized, initial_range)
    samples, timestep, conditions = data.flat(slice(0, seeds))
    with progress("initial scales", sum(map(len, groups.values()))) as advance:
        runner = _Initializer(float_graph, groups, len(data.timesteps), timestep, rule, advance)
        placeholders = [str(n.target) for n in float_graph.graph.nodes if n.op == "placeholder"]
        values = {placeholders[0]: samples, "timestep": timestep, **conditions}
        runner.run(*[values[name] for name in placeholders])
    return runner.records


class _Initializer(Interpreter):
    """Runs the float graph, and sets the quantizers of each value when the value has been computed."""

    def __init__(self, module: GraphModule, groups: Mapping[str, list[Group]], rows: int, timestep: torch.Tensor, rule: Dilation,
                 advance: Any) -> None:  # fmt: skip
        super().__init__(module)
        self.groups, self.table_rows, self.timestep, self.rule, self.advance = groups, rows, timestep, rule, advance
        self.records: list[DilationRecord] = []

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        for group in self.groups.get(n.name, []):
            self._check(n.name, value)
            if not group.quantizer.fixed:
                record = set_group(group, value, self.timestep, self.table_rows, self.rule)
                self.records += [record] if record else []
            self.advance(1, group.name)
        return value

    def _check(self, name: str, value: torch.Tensor) -> None:
        bad = (~torch.isfinite(value.flatten(1))).any(dim=1).nonzero()[:, 0]
        if len(bad):
            seed = int(bad[0]) % (len(value) // self.table_rows)
            raise ArtifactError(f"activation '{name}' has NaN or Inf at timestep {float(self.timestep[bad[0]]):g}, seed {seed}")


def set_group(group: Group, x: torch.Tensor, timestep: torch.Tensor, rows: int, rule: Dilation) -> DilationRecord | None:
    """Choose dilation and tables for one activation x [T·m, ...] (timesteps slowest)."""
    quantizer = group.quantizer
    fit, judge = _halves(x, timestep, rows)
    if not group.layers or rule is Dilation.NONE:
        quantizer.set_tables(*search_tables(fit[0], rows, quantizer.bits, symmetric=quantizer.symmetric, clip=group.clip))
        return None
    weights = {name: layer.weight.detach().clone() for name, layer in group.layers.items()}
    bound_rule = asymmetric_bound if rule is Dilation.ASYMMETRIC else symmetric_bound
    bound = bound_rule(list(weights.values()))
    if len(bound) != len(quantizer.dilation):  # a grouped convolution: its input channels do not all meet every output
        bound = torch.ones_like(quantizer.dilation)
    magnitude = fit[0].abs().transpose(quantizer.axis, 1).unflatten(0, (rows, -1)).transpose(1, 2)  # [T, C, m, ...] for any axis
    choices = candidates(bound, magnitude.flatten(2).amax(dim=2)) if magnitude.dim() > 3 else candidates(bound, magnitude.amax(dim=2))
    if rule is not Dilation.AUTO:
        choices = {name: s for name, s in choices.items() if name in ("none", "full")}
    errors = {name: _try(group, weights, s, fit, judge, rows) for name, s in choices.items()}
    best = min(errors, key=lambda name: errors[name]) if rule is Dilation.AUTO else list(choices)[-1]
    if rule is Dilation.AUTO and errors[best] > _WORTHWHILE * errors["none"]:
        best = "none"
    _apply(group, weights, choices["none"], fit[0], rows)
    before = quantizer.scale_table()
    _apply(group, weights, choices[best], fit[0], rows)
    ratio = float((quantizer.scale_table() / before).mean())
    share = float((choices[best] > 1).float().mean())
    return DilationRecord(group.name, best, float((bound > 1).float().mean()), share, ratio, errors[best] / max(errors["none"], 1e-30))


def _halves(
    x: torch.Tensor, timestep: torch.Tensor, rows: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Split the seeds in two: tables are fitted on one half, and a dilation is judged on the other."""
    x, timestep = x.unflatten(0, (rows, -1)), timestep.unflatten(0, (rows, -1))
    middle = max(1, x.shape[1] // 2)
    second = slice(middle, None) if x.shape[1] > 1 else slice(0, 1)
    return (x[:, :middle].flatten(0, 1), timestep[:, :middle].flatten()), (x[:, second].flatten(0, 1), timestep[:, second].flatten())


def _apply(group: Group, weights: dict[str, torch.Tensor], s: torch.Tensor, x: torch.Tensor, rows: int) -> None:
    quantizer = group.quantizer
    quantizer.dilation.copy_(s)
    for name, layer in group.layers.items():
        layer.set_weight(dilate(weights[name], s) if bool((s != 1).any()) else weights[name])
    scaled = x * numerics.per_channel(1 / s, x, quantizer.axis)
    quantizer.set_tables(*search_tables(scaled, rows, quantizer.bits, symmetric=quantizer.symmetric, clip=group.clip))


def _try(group: Group, weights: dict[str, torch.Tensor], s: torch.Tensor, fit: tuple[torch.Tensor, torch.Tensor],
         judge: tuple[torch.Tensor, torch.Tensor], rows: int) -> float:  # fmt: skip
    """Relative squared output error of the group's layers with real rounding, averaged over timesteps."""
    _apply(group, weights, s, fit[0], rows)
    x, timestep = judge
    quantized = group.quantizer(x, timestep)
    error = 0.0
    for name, layer in group.layers.items():
        exact = _float_output(layer, weights[name], x)
        difference = (layer(quantized) - exact).unflatten(0, (rows, -1)).flatten(1).double().pow(2).sum(1)
        error += float((difference / exact.unflatten(0, (rows, -1)).flatten(1).double().pow(2).sum(1).clamp(min=1e-30)).mean())
    return error


def _float_output(layer: QuantizedWeight, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    geometry = getattr(layer, "geometry", None)
    if geometry is None:
        return torch.nn.functional.linear(x, weight, layer.bias)
    return torch.nn.functional.conv2d(x, weight, layer.bias, **geometry)


def search_tables(x: torch.Tensor, rows: int, bits: int, *, symmetric: bool, clip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale [T] and zero-point [T] per timestep, all timesteps together, for ``x`` [T·m, ...] (timesteps slowest).

    The range is min–max; with ``clip`` the one with the least squared error, min–max shrunk by a common factor down to a quarter. At 8
    bits clipping costs the network more than the finer steps gain (docs/decisions/initial-range.md).
    """
    values = x.reshape(rows, -1).float()
    low, high = values.amin(dim=1), values.amax(dim=1)
    best_scale, best_zero = numerics.affine_parameters(low, high, bits, symmetric=symmetric)
    if not clip:
        return best_scale, best_zero
    if values.shape[1] > _SEARCH_ELEMENTS:
        step = values.shape[1] // _SEARCH_ELEMENTS
        values = values[:, ::step]
    best_error = torch.full((rows,), torch.inf)
    for shrink in _SHRINK:
        scale, zero = numerics.affine_parameters(low * shrink, high * shrink, bits, symmetric=symmetric)
        codes = numerics.quantize(values, (1 / scale)[:, None], zero[:, None], bits)
        error = (codes * scale[:, None] - values).pow(2).mean(dim=1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero
