"""``python -m benchmarks.cards``: the tables of docs/large-models.md, from the models' configurations and one measured run.

Parameters and multiply-accumulates are counted. What a stage takes is that of a network of Stable Diffusion 1.5's size, which
``benchmarks.scale`` measured, in proportion to either. What ``--dry-run`` says stands in ``results`` (dry_run.py).
"""

from __future__ import annotations

import json
from pathlib import Path

from dq_deploy.quantization.final_error import calls
from dq_deploy.quantization.rounding.layerwise import seeds_used

from .dry_run import TRIED, file_of
from .models import MODELS, Model
from .recipes import RECIPES, Recipe

PAGE = Path(__file__).parents[2] / "docs" / "large-models.md"
BEGIN, END = "<!-- models: begin, written by python -m benchmarks.cards -->", "<!-- models: end -->"
RECIPES_BEGIN, RECIPES_END = "<!-- recipes: begin, written by python -m benchmarks.cards -->", "<!-- recipes: end -->"
MEASURED = Path(__file__).parents[1] / "scale" / "results" / "w8a8"
CARD_BYTES = 24e9
_NETWORK = ("| counted | parameters | a pass | float32 | fp16 | W8A8 | W4A8 |", "|---|---:|---:|---:|---:|---:|---:|")
PROMPTS, REFERENCES, COMPARED = 16, 4, 8
"""Of a recipe: its prompts, and by default the reference samples and those that are compared with the float network at every step."""
_PASSES_MEASURED = 28  # of the network, in the run that was measured (benchmarks/scale)
_GPU_MACS = 20e12  # a second: half of what an RTX 4090 has at most in float32, with an addition for each multiplication
_DRY = (
    "| measured by `--dry-run` | weights, float32 | memory above them | the most that the dry run itself held | disk |",
    "|---|---:|---:|---:|---:|",
)
_RECIPES = (
    "| model | options | passes | multiply-accumulates | two CPU cores, estimated | passes alone at 20 T a second, arithmetic |",
    "|---|---|---:|---:|---:|---:|",
)
_STAGES = ("| estimated | quantize | time | export | build | quantize on the card | run on the card |", "|---|---:|---:|---:|---:|---|---|")


def table() -> str:
    """What the networks are, what their stages take, and what dry runs said: three tables in Markdown, a row for each model."""
    dry_runs = ["", *_DRY, *rows] if (rows := _dry_runs()) else []
    return "\n".join([*_NETWORK, *map(_network, MODELS), "", *_STAGES, *map(_stages, MODELS), *dry_runs])


def _dry_runs() -> list[str]:
    found = [json.loads(file_of(tried).read_text()) for tried in TRIED if file_of(tried).is_file()]
    return [
        f"| {one['name']} | {_gb(4 * one['parameters'])} | {_gb(one['memory_bytes']['peak'])} | {_gb(one['peak_of_the_dry_run_bytes'])} | "
        f"{_gb(one['disk_bytes']['peak'])} |"
        for one in found
    ]


def recipes() -> str:
    """What each family begins with, and what a calibration on ``PROMPTS`` prompts takes by that."""
    return "\n".join([*_RECIPES, *map(_recipe, RECIPES)])


def passes(steps: int, halves: int) -> int:
    """Of the network, W8A8 without dilation and distillation: trajectories, scales, GPTQ, comparison, output bias, cost of each step."""
    seeds = 3 * PROMPTS + REFERENCES + seeds_used(PROMPTS) + COMPARED
    return halves * (steps * seeds + calls(steps))


def _recipe(recipe: Recipe) -> str:
    if recipe.model is None:
        return f"| {recipe.name} | {recipe.options} | – | – | – | – |"
    count = passes(recipe.steps, recipe.halves)
    macs = count * recipe.model.macs()
    measured = json.loads((MEASURED / "quantize.json").read_text())
    rate = _PASSES_MEASURED * measured["result"]["macs"] / measured["wall_s"]
    cells = (f"{count:,}", f"{macs / 1e12:,.0f} T", _time(macs / rate), _time(macs / _GPU_MACS))
    return f"| {recipe.name} | {recipe.options} | {' | '.join(cells)} |"


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
    if seconds > 2 * 86400:
        return f"{seconds / 86400:.0f} days"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _fits(size: float) -> str:
    return "fits" if size <= CARD_BYTES else "**does not fit**"


def write() -> None:
    """Put the tables between the page's markers."""
    page = PAGE.read_text()
    for begin, end, text in ((BEGIN, END, table()), (RECIPES_BEGIN, RECIPES_END, recipes())):
        page = f"{page[: page.index(begin) + len(begin)]}\n\n{text}\n\n{page[page.index(end) :]}"
    PAGE.write_text(page)


if __name__ == "__main__":
    write()
