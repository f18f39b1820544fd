"""A layer report as a picture: precisions, kernels and bytes of weights, beside the float build's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engines.layer_report.compare import BuildTotals, LayerComparison
from .svg import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, WIDTH, figure, styled, to_svg

_COLOURS = {"int8": BLUE, "fp16": ORANGE, "bf16": ORANGE, "fp32": GREY, "not found": PURPLE}


def layer_plot(comparison: LayerComparison) -> str:
    """Three panels: products by precision, kernels, weights in MB; a bar for each build."""
    builds = {"quantized": comparison.totals} | ({"baseline": comparison.baseline} if comparison.baseline else {})
    with styled():
        canvas = figure(WIDTH, 1.35 + 0.5 * len(builds))
        products, kernels, weights = canvas.subplots(1, 3, sharey=True, width_ratios=[2, 1.2, 1])
        places = range(len(builds))[::-1]
        for place, build in zip(places, builds.values(), strict=True):
            _stack(products, place, _products(build))
            _bar(kernels, place, build.kernels, f"{build.kernels}")
            _bar(weights, place, build.weights_bytes / 1e6, f"{build.weights_bytes / 1e6:.2f}")
        for axes, title in ((products, "convolutions and matrix products"), (kernels, "kernels"), (weights, "weights [MB]")):
            axes.set_title(title)
            axes.grid(visible=False, axis="y")
            axes.margins(x=0.18)
        products.set_yticks(places, list(builds))
        products.set_ylim(-0.6, len(builds) - 0.4)
        device = comparison.totals.compute_capability or "CPU"
        canvas.supxlabel(
            f"{comparison.totals.backend} {comparison.totals.version} for {device}: {comparison.totals.statement}", fontsize=8.5
        )
        counts = "; ".join(f"{name}: {_words(_products(build))}, {build.kernels} kernels" for name, build in builds.items())
        return to_svg(canvas, "layers", counts)


def _products(build: BuildTotals) -> dict[str, int]:
    names = dict.fromkeys([*build.conv_by_precision, *build.gemm_by_precision])
    return {name: build.conv_by_precision.get(name, 0) + build.gemm_by_precision.get(name, 0) for name in sorted(names, key=_order)}


def _order(precision: str) -> tuple[bool, str]:
    return precision != "int8", precision


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {precision}" for precision, count in counts.items()) or "no product"


def _stack(axes: Any, place: int, counts: Mapping[str, int]) -> None:
    left = 0
    for precision, count in counts.items():
        axes.barh(place, count, left=left, color=_COLOURS.get(precision, GREEN), height=0.55)
        left += count
    axes.text(left, place, f" {_words(counts)}", va="center", fontsize=8.5, color=INK)
    axes.set_xlim(0, max(1.7 * left, axes.get_xlim()[1]))


def _bar(axes: Any, place: int, value: float, label: str) -> None:
    axes.barh(place, value, color=BLUE if place else GREY, height=0.55)
    axes.text(value, place, f" {label}", va="center", fontsize=8.5, color=INK)
