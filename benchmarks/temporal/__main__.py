"""Time of one training step over mixed timesteps against a loop over the timesteps, on the same samples of the built-in UNet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from torch.fx import GraphModule

from dq_deploy.console import Output
from dq_deploy.engines.bench.statistics import paired_ratio
from dq_deploy.engines.devices.machine import machine_info
from dq_deploy.progress import silent
from dq_deploy.quantization.calibration.source import Request
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.calls import arguments, as_model
from dq_deploy.quantization.initial.initialize import initialize
from dq_deploy.quantization.pipeline import copy_with_quantizers
from dq_deploy.quantization.prepare import prepare


@click.command()
@click.option("--source", default="builtin:fashion-mnist-unet", show_default=True)
@click.option("--steps", type=click.IntRange(2), default=20, show_default=True, help="T, the rows of every table.")
@click.option("--per-timestep", default="1,2,8", show_default=True, help="Samples of each timestep in a step, with commas between them.")
@click.option("--rounds", type=click.IntRange(2), default=15, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("benchmarks/temporal/RESULTS.md"), show_default=True)
def main(source: str, steps: int, per_timestep: str, rounds: int, output: Path) -> None:
    """Write how much longer a loop takes than one pass over mixed timesteps; both train every row on the same samples."""
    out = Output()
    counts = [int(part) for part in per_timestep.split(",")]
    quantized, data = _model(source, steps, max(counts))
    rows = []
    with out.progress("timing", rounds * len(counts)) as advance:
        for count in counts:
            step = _Step(quantized, data, count)
            mixed, looped = (step.everything,), step.everything.split(count)
            times = []
            for _ in range(rounds):
                times.append((_seconds(step, mixed), _seconds(step, looped)))
                advance(1, f"{count} of each timestep")
            table = np.array(times[1:])  # the first round is warm-up
            ratio = paired_ratio(table[:, 1], table[:, 0])
            rows.append(f"| {count} | {len(step.everything)} | {ratio.value:.2f} | {ratio.low:.2f}–{ratio.high:.2f} |")
    output.write_text(_page(source, steps, per_timestep, rounds, rows))
    out.text("\n".join(rows))


class _Step:
    """Gradients of ``count`` samples of each timestep."""

    def __init__(self, quantized: GraphModule, data: Trajectories, count: int) -> None:
        self.quantized = quantized
        self.samples, self.timestep, self.conditions = data.flat(slice(0, count))
        self.target = data.outputs[:, :count].flatten(0, 1)
        self.everything = torch.arange(len(self.samples))

    def __call__(self, parts: Sequence[torch.Tensor]) -> None:
        """Forward and backward passes, one for each of ``parts``; gradients add up."""
        self.quantized.zero_grad()
        for part in parts:
            values = {k: v[part] for k, v in self.conditions.items()}
            output = self.quantized(*arguments(self.quantized, self.samples[part], self.timestep[part], values))
            (output - self.target[part]).pow(2).sum().backward()


def _model(source: str, steps: int, seeds: int) -> tuple[GraphModule, Trajectories]:
    config = QuantizeConfig.build("w8a8", steps=steps, dilation="none", calibration_samples=max(seeds, 2))
    prepared = prepare(source, config, Request())
    data = prepared.calibration.collect(as_model(prepared.float_graph), range(config.calibration_samples), silent)
    quantized = copy_with_quantizers(prepared.float_graph, prepared.plan, data.timesteps)
    initialize(prepared.float_graph, quantized, data, config)
    return quantized, data


def _seconds(step: _Step, parts: Sequence[torch.Tensor]) -> float:
    start = time.perf_counter()
    step(parts)
    return time.perf_counter() - start


def _page(source: str, steps: int, per_timestep: str, rounds: int, rows: list[str]) -> str:
    return f"""# One pass over mixed timesteps against a loop

`python -m benchmarks.temporal --per-timestep {per_timestep} --rounds {rounds}` on `{source}`, T = {steps}, W8A8:
forward and backward pass of the whole network, which gives every row of every table its gradient, against a loop that takes
one timestep at a time. Same samples, same gradients (`tests/quantization/test_temporal.py` compares them in float64), both
timed in each of {rounds} rounds; the first is warm-up. {torch.get_num_threads()} thread(s), PyTorch {torch.__version__},
{machine_info()["cpu"]}.

| samples of each timestep | samples a step | loop ÷ one pass | 95% interval |
|---:|---:|---:|---:|
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    main()
