"""What a scale for each timestep in front of FP4 blocks would gain: the best of several factors, against the constant alone."""

from __future__ import annotations

from statistics import median

import click
import torch
from torch.fx import GraphModule, Interpreter, Node

from dq_deploy.console import Output
from dq_deploy.decibels import ratio_db
from dq_deploy.formats import FP4, FP8
from dq_deploy.progress import silent
from dq_deploy.quantization import blocks
from dq_deploy.quantization.calibration.source import Request
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.calls import as_model
from dq_deploy.quantization.graph.plan import make_plan
from dq_deploy.quantization.grid import nearest
from dq_deploy.quantization.prepare import prepare

_FACTORS = 8  # from 1 up to 2: a power of two more changes nothing but the range
_SUBNORMAL = 2.0**FP8.least_exponent


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--samples", type=click.IntRange(1), default=4, show_default=True)
@click.option("--steps", type=click.IntRange(2), default=10, show_default=True)
def main(names: tuple[str, ...], samples: int, steps: int) -> None:
    """SNR in dB of what the linear layers of a built-in NAME read, as FP4 codes in blocks; a tensor's figure is its mean over timesteps."""
    output = Output()
    columns = ("network", "tensors", "constant", "best factor by timestep", "gain", "largest over timesteps", "blocks below E4M3's normal")
    output.table("FP4 in blocks of 16", columns, [_row(name, samples, steps) for name in names])


@torch.no_grad()
def _row(name: str, samples: int, steps: int) -> tuple[object, ...]:
    config = QuantizeConfig.build("nvfp4", steps=steps, calibration_samples=max(2, samples), max_float_share=0.5)
    prepared = prepare(f"builtin:{name}", config, Request())
    data = prepared.calibration.collect(as_model(prepared.float_graph), range(samples), silent)
    plan = make_plan(prepared.float_graph, config)
    read = {layer.node.args[0] for layer in plan.quantized if layer.activation_format is FP4}
    seen: dict[Node, list[torch.Tensor]] = {node: [] for node in read if isinstance(node, Node)}
    for row, timestep in enumerate(data.timesteps):
        inputs = {prepared.names[0]: data.samples[row], "timestep": timestep.repeat(data.samples.shape[1]), **data.conditions}
        _Reader(prepared.float_graph, seen).run(*(inputs[each] for each in prepared.names))
    figures = [_figures(values) for values in seen.values()]
    constant, best, spread, below = (median(column) for column in zip(*figures, strict=True))
    return name, len(figures), f"{constant:.2f}", f"{best:.2f}", f"{best - constant:+.2f}", f"{spread:.1f} ×", f"{below:.2%}"


class _Reader(Interpreter):
    """Keeps the values of some nodes."""

    def __init__(self, module: GraphModule, seen: dict[Node, list[torch.Tensor]]) -> None:
        super().__init__(module)
        self._seen = seen

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        if n in self._seen:
            self._seen[n].append(value.float())
        return value


def _figures(values: list[torch.Tensor]) -> tuple[float, float, float, float]:
    """SNR with the constant, with the best factor of each timestep; how much the largest value varies; blocks with a subnormal scale."""
    largest = [float(x.abs().max()) for x in values]
    g = torch.tensor(blocks.global_scale(max(largest)))
    factors = [2 ** (i / _FACTORS) for i in range(_FACTORS)]
    noise = [[_noise(x * factor, g) for factor in factors] for x in values]
    below = [float((blocks.block_scales(x, g) < _SUBNORMAL).float().mean()) for x in values]
    constant, best = (_mean_db([choose(row) for row in noise]) for choose in (lambda row: row[0], min))
    return constant, best, max(largest) / max(min(largest), 1e-30), sum(below) / len(below)


def _noise(x: torch.Tensor, g: torch.Tensor) -> float:
    """Error power over power."""
    scale = blocks.by_element(blocks.block_scales(x, g) * g)
    return float((nearest(x / scale, FP4) * scale - x).double().square().sum() / x.double().square().sum().clamp(min=1e-30))


def _mean_db(noise: list[float]) -> float:
    return ratio_db(1.0, sum(noise) / len(noise))


if __name__ == "__main__":
    main()
