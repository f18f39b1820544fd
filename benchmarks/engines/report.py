"""The page: every engine beside its static and its float form, and the targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from .study import CAPABILITIES, KINDS, MODELS, PRESETS, Cell, Engine, cell_name, cells

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"
RESULTS = HERE / "results"
MOST_KERNELS = 1.02
MOST_WEIGHTS = {"w8a8": 0.27, "w6a6": 0.27, "w4a8": 0.15, "w4a4": 0.15}
_SAME_BUT_CLIPS = {"w6a6": "w8a8", "w4a4": "w4a8"}
_INTRODUCTION = """\
# What per-timestep scales cost in an engine

`python -m benchmarks.engines` writes this page: it quantizes the built-in models (20 timesteps, iterations 0: the kernels do not depend on
the values), exports them and builds them with TensorRT-RTX {version}, ahead of time, no GPU. Weights of up to 4 bits are stored as INT4.
The kernels are those that the compiler *chose*; none was executed. Attention is in INT8 here (`export --attention int8`), so that every
product is compared; what the default makes of it is in [ATTENTION.md](ATTENTION.md).

- **per-timestep**: scales and zero-points selected by the timestep. **static**: the same model with one scale and zero-point a layer
  (`--activations static`), as constants of the same graph.
- **plain static**: static, symmetric, with the scale inside Q/DQ, as static quantization is usually exported; only there for 8-bit
  activations.
- **ratio**: per-timestep kernels over the static ones. **weights**: the engine's, and their share of FP32's.
"""
_REASONS = """\
## Why some are missed

- **Plain static, UNet.** That graph has no zero-points: nothing is padded before it is quantized and no sum is corrected. The static graph
  that has them takes more kernels than the per-timestep one, so it is probably the zero-points that cost 7 kernels, not the timesteps. A
  symmetric per-timestep engine, which would tell, was not built.
- **Weights, DiT.** Its layers are 128 channels wide, and every output channel has 12 bytes of fp32 beside its codes (scale, sum of the
  weights, bias): 134 kB. The share falls as a network gets wider.
- Static has more kernels than per-timestep where the compiler makes three kernels instead of one of what follows the merged q/k/v GEMM
  ([docs/decisions/scale-tables.md](../../docs/decisions/scale-tables.md)). A smaller count is no proof of a faster engine.
"""


def load(folder: Path = RESULTS) -> dict[str, Cell]:
    """The recorded cells by name; missing ones are not there."""
    files = (folder / f"{cell_name(*cell)}.json" for cell in cells())
    found = (Cell.model_validate_json(file.read_text()) for file in files if file.is_file())
    return {cell.name: cell for cell in found}


def page(found: Mapping[str, Cell]) -> str:
    """The page, in Markdown. Cells that are not measured yet are named, and their targets not judged."""
    versions = sorted({cell.version for cell in found.values()})
    lines = [_INTRODUCTION.format(version=", ".join(versions))]
    if missing := [cell_name(*cell) for cell in cells() if cell_name(*cell) not in found]:
        lines += [f"Not measured yet: {', '.join(missing)}.", ""]
    for model in MODELS:
        for capability in CAPABILITIES:
            lines += _table(found, model, capability)
    lines += ["## Targets", "", "| target | met | missed |", "|---|---:|---|"]
    for target, outcomes in targets(found).items():
        missed = [where for where, met in outcomes.items() if not met]
        lines.append(f"| {target} | {len(outcomes) - len(missed)} of {len(outcomes)} | {'; '.join(missed) or '–'} |")
    return "\n".join([*lines, "", _REASONS])


def _engine(found: Mapping[str, Cell], model: str, precision: str, kind: str, capability: str) -> Engine | None:
    cell = found.get(cell_name(model, precision, kind))
    return cell.engines[capability] if cell else None


def _table(found: Mapping[str, Cell], model: str, capability: str) -> list[str]:
    floats = {dtype: _engine(found, model, dtype, "float", capability) for dtype in ("fp32", "fp16")}
    sizes = [f"{dtype} {e.kernels} kernels and {e.weights_bytes / 1e6:.2f} MB" for dtype, e in floats.items() if e]
    lines = [
        f"## {model}, compute capability {capability}",
        "",
        f"Float: {', '.join(sizes)}.",
        "",
        "| preset | planned in INT8 | kernels (GEMMs) | static | ratio | plain static | weights |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for preset in PRESETS:
        own, static, plain = (_engine(found, model, preset, kind, capability) for kind in KINDS)
        if own is None:
            continue
        share = f", {own.weights_bytes / floats['fp32'].weights_bytes:.3f}" if floats["fp32"] else ""
        ratio = f"{own.kernels / static.kernels:.3f}" if static else "–"
        counts = [_kernels(engine) if engine else "–" for engine in (own, static, plain)]
        row = [preset, f"{own.planned_int8} of {own.planned}", *counts[:2], ratio, counts[2], f"{own.weights_bytes / 1e6:.2f} MB{share}"]
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]


def _kernels(engine: Engine) -> str:
    return f"{engine.kernels} ({engine.gemm_kernels})"


def targets(found: Mapping[str, Cell]) -> dict[str, dict[str, bool]]:
    """Target → where it applies → whether it is met."""
    outcomes: dict[str, dict[str, bool]] = {}
    for target, where, met in _targets(found):
        outcomes.setdefault(target, {})[where] = met
    return outcomes


def _targets(found: Mapping[str, Cell]) -> Iterator[tuple[str, str, bool]]:
    for model in MODELS:
        for preset in PRESETS:
            if own := found.get(cell_name(model, preset, "per-timestep")):
                for capability in CAPABILITIES:
                    yield from _targets_of(found, own, capability)


def _targets_of(found: Mapping[str, Cell], cell: Cell, capability: str) -> Iterator[tuple[str, str, bool]]:
    """Those of one per-timestep engine, as far as what it is compared with has been measured."""
    own, where = cell.engines[capability], f"{cell.model} {cell.precision} on {capability}"
    yield "every planned conv and GEMM in INT8", where, own.planned_int8 == own.planned
    for kind, words in (("static", "static's"), ("plain", "plain static's")):
        if other := _engine(found, cell.model, cell.precision, kind, capability):
            ratio = own.kernels / other.kernels
            yield f"kernels at most {MOST_KERNELS} × {words}", f"{where} ({ratio:.3f})", ratio <= MOST_KERNELS
    if fp32 := _engine(found, cell.model, "fp32", "float", capability):
        most, share = MOST_WEIGHTS[cell.precision], own.weights_bytes / fp32.weights_bytes
        yield f"weights at most {most} × FP32's", f"{where} ({share:.3f})", share <= most
    like = _SAME_BUT_CLIPS.get(cell.precision, "")
    if other := _engine(found, cell.model, like, "per-timestep", capability):
        target = f"{cell.precision}: {like}'s kernels plus at most the clips"
        yield target, f"{where} ({own.kernels} and {other.kernels})", own.kernels <= other.kernels + cell.clipped
