"""RESULTS.md, from the results of the stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dq_deploy.console import Output, duration

from .setting import Setting
from .stages import ROUTE

Done = Mapping[str, dict[str, Any]]

MEMORY_GOAL, TIME_GOAL_S = 24 << 30, 20 * 60
EXPORT_GOAL = 1.5  # × the float weights, above a process that has imported as much
EXPORT_GOAL_FROM = 10**9  # float weights in bytes; below, the exporter's own tables weigh more
WEIGHTS_GOAL, KERNELS_GOAL = 0.27, 1.02


def write_report(presets: Mapping[Setting, Done], page: Path, out: Output, note: str = "") -> None:
    """Write the page from the stages that have been run, the first preset's in full; what is missing is left out."""
    presets = {setting: done for setting, done in presets.items() if "quantize" in done}
    if not presets:
        return
    setting, done = next(iter(presets.items()))
    made = done["quantize"]
    facts = made["result"]
    rows = "\n".join(_row(name, stage) for name, stage in done.items() if name != "imports")
    small = "" if setting == Setting() else f" Not the whole size: {setting.to_json()}."
    page.write_text(f"""# A Stable-Diffusion-1.5-sized UNet, from module to engine

`python -m benchmarks.scale`: `UNet2DConditionModel` with {facts["parameters"] / 1e6:.1f}M random weights ({_gb(facts["float_bytes"])} in
float32), channels {", ".join(map(str, setting.block_out_channels))}, {setting.layers_per_block} layers a block, latents
{setting.sample_size} × {setting.sample_size}, text embeddings {setting.tokens} × {setting.cross_attention_dim}:
{facts["macs"] / 1e9:.0f} GMAC a forward pass, {facts["layers"]} layers planned in INT8, {facts["float_layers"]} left in float
({facts["float_mac_share"]:.2%} of the multiply-accumulates).{small}

{setting.preset.upper()}, {setting.steps} timesteps × {setting.calibration_samples} calibration seeds and
{setting.reference_samples} reference seed, dilation `{setting.dilation}`, no distillation, no guidance: about {_passes(setting)} forward
passes. A trained model needs more (docs/large-models.md); random weights say nothing of quality.
{made["threads"]} threads, {made["cpu"]}, PyTorch {made["torch"]}. {made["load"]} {note}

| stage | wall time | CPU time | peak memory of the process | of its children | of all at once | on disk |
|---|---:|---:|---:|---:|---:|---:|
{rows}

The first four are what a user runs. `again` exports a second time, `static-engine` builds the same graph with one row for all timesteps.
Memory is resident memory; that of children and of all at once is sampled ten times a second.

## Goals

{chr(10).join(_verdicts(done))}

## Every preset

| preset | for SM | planned layers in INT8 | kernels | with static scales | ratio | weights | × FP32 | × {setting.preset.upper()} |
|---|---|---:|---:|---:|---:|---:|---:|---:|
{chr(10).join(row for each, stages in presets.items() for row in _engine_rows(each, stages, done))}

Chosen by the compiler, not executed. W6A6 differs from W8A8 by the clips before its quantizers, W4A4 from W4A8 likewise; INT4 storage
brings kernels that recast the codes to INT8 on every run: smaller, not faster (docs/engines.md).
""")
    out.text(page.read_text())


def _passes(setting: Setting) -> int:
    """Capture compares batches 1 and 3 before and after; then trajectories, references, the scales' pass, the comparison."""
    seeds = max(1, setting.calibration_samples * 3 // 4)
    return 8 + setting.steps * (setting.calibration_samples + setting.reference_samples * 2 + min(8, seeds))


def _row(name: str, stage: dict[str, Any]) -> str:
    numbers = [stage["peak_bytes"], stage["children_peak_bytes"], stage["together_peak_bytes"], stage["disk_bytes"]]
    cells = [duration(stage["wall_s"]), duration(stage["cpu_s"]), *(_gb(n) if n else "–" for n in numbers)]
    return f"| {name} | {' | '.join(cells)} |"


def _engine_rows(setting: Setting, done: Done, first: Done) -> list[str]:
    """The engines of a preset, one for each compute capability, beside those of static scales and of the first preset."""
    rows = []
    for name in (n for n in ("engine", "engine-12.0") if n in done):
        engine, static = done[name]["result"], done.get(f"static-{name}", {}).get("result")
        cells = [
            setting.preset.upper(),
            engine["compute_capability"],
            f"{engine['planned_int8']} of {engine['planned_layers']}",
            engine["kernels"],
            *((static["kernels"], f"{engine['kernels'] / static['kernels']:.3f}") if static else ("–", "–")),
            _gb(engine["weights_bytes"]),
            f"{engine['weights_bytes'] / done['quantize']['result']['float_bytes']:.3f}",
            f"{engine['weights_bytes'] / first[name]['result']['weights_bytes']:.3f}" if name in first else "–",
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def _verdicts(done: Done) -> list[str]:
    """A line for each goal that can be judged."""
    facts = done["quantize"]["result"]
    lines = []
    if all(name in done for name in ROUTE):
        wall, memory = (f(done[name][key] for name in ROUTE) for f, key in ((sum, "wall_s"), (max, "together_peak_bytes")))
        lines.append(_line("module to engine in 20 minutes", wall <= TIME_GOAL_S, duration(wall)))
        lines.append(_line("within 24 GiB of memory", memory <= MEMORY_GOAL, f"{memory / 2**30:.1f} GiB"))
    if "imports" in done:
        empty, weights = done["imports"]["peak_bytes"], facts["float_bytes"]
        for name in (n for n in ("tensorrt", "onnxruntime") if n in done):
            share = (done[name]["peak_bytes"] - empty) / weights
            text = f"{share:.2f} × ({_gb(done[name]['peak_bytes'])} − {_gb(empty)}) ÷ {_gb(weights)}"
            applies = weights >= EXPORT_GOAL_FROM
            what = f"peak of the {name} export above an empty process with the same imports ≤ {EXPORT_GOAL} × the float weights"
            lines.append(_line(what, share <= EXPORT_GOAL if applies else None, text))
    if "engine" in done:
        engine = done["engine"]["result"]
        share = engine["weights_bytes"] / facts["float_bytes"]
        found = f"{share:.3f} × ({_gb(engine['weights_bytes'])} of {_gb(facts['float_bytes'])}, four bytes a parameter)"
        lines.append(_line(f"engine weights ≤ {WEIGHTS_GOAL} × FP32's", share <= WEIGHTS_GOAL, found))
        target = f"TensorRT-RTX {engine['version']}, compute capability {engine['compute_capability']}"
        found = f"{engine['planned_int8']} of {engine['planned_layers']} ({target}; chosen by the compiler, not executed)"
        lines.append(_line("planned layers in INT8", engine["planned_int8"] == engine["planned_layers"], found))
    if "static-engine" in done:
        ours, static = (done[name]["result"]["kernels"] for name in ("engine", "static-engine"))
        found = f"{ours / static:.3f} × ({ours} and {static})"
        lines.append(_line(f"kernels ≤ {KERNELS_GOAL} × static scales'", ours / static <= KERNELS_GOAL, found))
    if "again" in done:
        again = done["again"]["result"]
        found = f"{', '.join(again['files'])}: {', '.join(again['differing']) or 'none'} differing"
        lines.append(_line("the same checkpoint gives a byte-identical bundle", not again["differing"], found))
    data = {name: done[name]["result"]["data"] for name in ("tensorrt", "onnxruntime") if name in done}
    if data:
        found = "; ".join(f"{name}: {d['tensors']} tensors in {', '.join(d['locations']) or 'no file'}" for name, d in data.items())
        lines.append(_line("external data beside the graph, by a relative name", True, found))
    return lines


def _line(goal: str, met: bool | None, found: str) -> str:
    return f"- {goal}: {'not judged at this size' if met is None else 'met' if met else 'missed'}. {found}."


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
