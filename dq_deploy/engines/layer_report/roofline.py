"""The least time that a GPU can take for a network, from its peaks: what a measured time is compared with.

    time ≥ max( Σ_p operations_p / peak_p,  bytes / bandwidth )

Operations are two for each multiply-accumulate, by precision p. Bytes are those of the weights, each read once; activations come on top, so
the bound is below what is possible, never above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from . import LayerReport, ReportedAttention, ReportedLayer

# Dense tensor-core operations in a clock of one multiprocessor, as NVIDIA's architecture whitepapers have them (peak rate divided by
# multiprocessors and boost clock): A100, GA10x, AD10x, H100, GB20x. GeForce GPUs add up FP16 and FP8 products in FP32 at half of what is
# stated: the floor is below what is possible there, never above.
_OPERATIONS_PER_CLOCK: dict[str, dict[str, int]] = {
    "8.0": {"int8": 4096, "fp16": 2048},
    "8.6": {"int8": 2048, "fp16": 1024},
    "8.9": {"int8": 2048, "fp8": 2048, "fp16": 1024},
    "9.0": {"int8": 8192, "fp8": 8192, "fp16": 4096},
    "12.0": {"fp4": 4096, "int8": 2048, "fp8": 2048, "fp16": 1024},
}


@dataclass(frozen=True)
class Peaks:
    """A GPU's peaks: operations per second by precision, and bytes per second of its memory."""

    operations: dict[str, float]
    bytes_per_s: float


@dataclass(frozen=True)
class Work:
    """What a network takes: multiply-accumulates per sample by precision, and bytes of weights."""

    macs: dict[str, int]
    weights_bytes: int


@dataclass(frozen=True)
class Roofline:
    """``floor_ms``: the least time of a batch; ``bound``: what it comes from. ``uncounted``: precisions whose peak is not known."""

    floor_ms: float
    bound: Literal["compute", "memory"]
    uncounted: tuple[str, ...] = ()


def peaks_of(capability: str, *, multiprocessors: int, clock_hz: float, memory_hz: float, bus_bits: int) -> Peaks | None:
    """A GPU's peaks from its properties, None for a generation that is not in the table. Memory moves data twice in a clock."""
    rates = _OPERATIONS_PER_CLOCK.get(capability)
    if rates is None:
        return None
    operations = {precision: rate * multiprocessors * clock_hz for precision, rate in rates.items()}
    return Peaks({**operations, "bf16": operations["fp16"]}, 2 * memory_hz * bus_bits / 8)


def work_of(report: LayerReport) -> Work:
    """From a layer report: the multiply-accumulates of planned layers and fused attentions in the precision in which they run.

    The rest is 2% at the most.
    """
    macs: dict[str, int] = {}
    fused = [attention for attention in report.attentions if attention.fused]
    multiplied: list[ReportedLayer | ReportedAttention] = [*report.layers, *fused]
    for layer in multiplied:
        macs[layer.precision or "not found"] = macs.get(layer.precision or "not found", 0) + layer.macs
    return Work(macs, report.weights_bytes)


def roofline(work: Work, peaks: Peaks, batch: int) -> Roofline:
    """The least time of one batch of ``batch`` samples."""
    counted = {precision: macs for precision, macs in work.macs.items() if precision in peaks.operations}
    compute_s = sum(2 * macs * batch / peaks.operations[precision] for precision, macs in counted.items())
    memory_s = work.weights_bytes / peaks.bytes_per_s
    uncounted = tuple(sorted(work.macs.keys() - counted.keys()))
    return Roofline(1e3 * max(compute_s, memory_s), "compute" if compute_s > memory_s else "memory", uncounted)


def describe(name: str, batch: int, device_ms: float, least: Roofline, work: Work, peaks: Peaks) -> str:
    """The measured time beside the bound, with the figures that it comes from."""
    operations = ", ".join(f"{2 * macs * batch / 1e9:.3g} G {precision} operations" for precision, macs in work.macs.items())
    rates = ", ".join(f"{peaks.operations[p] / 1e12:.0f} T {p}/s" for p in work.macs if p in peaks.operations)
    unknown = f"; {', '.join(least.uncounted)} not counted" if least.uncounted else ""
    return (
        f"{name}, batch {batch}: {device_ms:.3f} ms on the device, {least.floor_ms / device_ms:.0%} of the roofline: {operations} and "
        f"{work.weights_bytes / 1e6:.2f} MB of weights take {least.floor_ms:.4f} ms at least ({least.bound}; {rates or 'no known rate'}, "
        f"{peaks.bytes_per_s / 1e9:.0f} GB/s{unknown})"
    )
