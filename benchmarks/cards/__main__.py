"""``python -m benchmarks.cards``: the tables of docs/large-models.md, from the models' configurations and one measured run.

Parameters and multiply-accumulates are counted. What a stage takes is that of a network of Stable Diffusion 1.5's size, which
``benchmarks.scale`` measured, in proportion to either.
"""

from __future__ import annotations

import json
from pathlib import Path

from .models import MODELS, Model

PAGE = Path(__file__).parents[2] / "docs" / "large-models.md"
BEGIN, END = "<!-- models: begin, written by python -m benchmarks.cards -->", "<!-- models: end -->"
MEASURED = Path(__file__).parents[1] / "scale" / "results" / "w8a8"
CARD_BYTES = 24e9
_NETWORK = ("| counted | parameters | a pass | float32 | fp16 | W8A8 | W4A8 |", "|---|---:|---:|---:|---:|---:|---:|")
_STAGES = ("| estimated | quantize | time | export | build | quantize on the card | run on the card |", "|---|---:|---:|---:|---:|---|---|")


def table() -> str:
    """What the networks are, and what their stages take: two tables in Markdown, a row for each model."""
    return "\n".join([*_NETWORK, *map(_network, MODELS), "", *_STAGES, *map(_stages, MODELS)])


def _network(model: Model) -> str:
    parameters = model.parameters()
    sizes = map(_gb, (parameters * bytes_ for bytes_ in (4, 2, 1, 0.5)))
    return _row(model, f"{parameters / 1e9:.2f} B", f"{model.macs() / 1e12:.2f} T", *sizes)


def _row(model: Model, *cells: str) -> str:
    return f"| {' | '.join((model.name, *cells))} |"


def _stages(model: Model) -> str:
    measured = {stage: json.loads((MEASURED / f"{stage}.json").read_text()) for stage in ("quantize", "tensorrt", "engine")}
    reference = MODELS[0]
    parameters, macs = model.parameters(), model.macs()
    size, work = parameters / reference.parameters(), macs / reference.macs()
    # Two copies of the weights grow with the model, what else the measured run held does not: it is bounded by the batch.
    weights = 8 * parameters
    quantize = weights + measured["quantize"]["peak_bytes"] - 8 * reference.parameters()
    export, build = (measured[stage]["together_peak_bytes"] * size for stage in ("tensorrt", "engine"))
    seconds = measured["quantize"]["wall_s"] * work
    return _row(model, _gb(quantize), _time(seconds), _gb(export), _gb(build), _fits(quantize), _fits(1.5 * parameters))


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _fits(size: float) -> str:
    return "fits" if size <= CARD_BYTES else "**does not fit**"


def write() -> None:
    """Put the table between the page's markers."""
    page = PAGE.read_text()
    before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    PAGE.write_text(f"{before}\n\n{table()}\n\n{after}")


if __name__ == "__main__":
    write()
