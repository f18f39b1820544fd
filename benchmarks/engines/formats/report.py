"""The page: every form beside the FP16 build, its targets, and the least time that GPUs could take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.engines.attention.report import slug
from dq_deploy.engines.layer_report.roofline import Peaks, Work, peaks_of, roofline

from .study import FLOATS, FORMS, STUDIED, Built, capabilities, cells

HERE = Path(__file__).parent
PAGE = HERE.parent / "FORMATS.md"
RESULTS = HERE / "results"
BATCH = 8
MOST_KERNELS = 1.05
MOST_WEIGHTS = {"w8a8": 0.27, "fp8": 0.27, "w4a8": 0.15, "w4a8-fp8": 0.15, "nvfp4": 0.15}
_LONG = 256  # tokens of an attention whose scores weigh something

# Multiprocessors, boost clock in GHz, memory in GB/s: NVIDIA's specifications of each, dense rates. H100: SXM.
_GPUS = {"RTX 4090": ("8.9", 128, 2.52, 1008), "L40S": ("8.9", 142, 2.52, 864), "H100": ("9.0", 132, 1.83, 3350),
         "RTX 5090": ("12.0", 170, 2.41, 1792)}  # fmt: skip
_PLAN_OF = {"9.0": "8.9"}  # TensorRT-RTX has no 9.0: TensorRT would make the same products
_INTRODUCTION = """\
# Number formats in engines

`python -m benchmarks.engines.formats` writes this page: networks quantized with each preset and scale tables (`--activations per-timestep`;
the default of integers computes some layers' scales for each token, which
[costs kernels](../../docs/decisions/activation-scales.md)), exported as `export --target qdq` does by default, and built with TensorRT-RTX
{version}, ahead of time, no GPU. The kernels are those that the compiler *chose*; none was executed and none was timed.

- **as planned**: layers that run in the format which they are planned in. **attention**: those that are one kernel.
- **weights**: the engine's, and their share of FP32's. **activations**: at batch 8, the largest that was built for. **file**: the engine's.
"""
_ROOFLINE = """\
## What a GPU could do at most: an estimate

Least time of a batch of {batch} in µs: the multiply-accumulates of products in the precision of the plan above over the GPU's documented
peak, or the weights read once from its memory, whichever takes longer ([roofline.py](../../dq_deploy/engines/layer_report/roofline.py)).
**An estimate
from peaks, not a measurement**: launches, activations and everything that is no product cost nothing in it, and small networks are made of
these. H100 with the plan for 8.9.
"""


def load(folder: Path = RESULTS) -> dict[tuple[str, str], Built]:
    """Recorded cells by network and form."""
    files = {cell: folder / f"{slug(' '.join(cell))}.json" for cell in cells()}
    return {cell: Built.model_validate_json(file.read_text()) for cell, file in files.items() if file.is_file()}


def page(found: Mapping[tuple[str, str], Built]) -> str:
    """The page, in Markdown."""
    lines = [_INTRODUCTION.format(version=", ".join(sorted({built.version for built in found.values()})))]
    for network in STUDIED:
        for capability in capabilities("fp16"):
            lines += _table(found, network, capability)
    missing = [" ".join(cell) for cell in cells() if cell not in found]
    lines += [f"Not measured: {'; '.join(missing)}.", ""] if missing else []
    lines += [*_split(found), "", "## Targets", "", "| target | met | missed |", "|---|---:|---|"]
    outcomes: dict[str, dict[str, bool]] = {}
    for target, where, met in targets(found):
        outcomes.setdefault(target, {})[where] = met
    for target, of_target in outcomes.items():
        missed = [where for where, met in of_target.items() if not met]
        lines.append(f"| {target} | {len(of_target) - len(missed)} of {len(of_target)} | {'; '.join(missed) or '–'} |")
    return "\n".join([*lines, "", _ROOFLINE.format(batch=BATCH), *_estimates(found)]) + "\n"


def targets(found: Mapping[tuple[str, str], Built]) -> Iterator[tuple[str, str, bool]]:
    """(Target, where it applies with the figure, whether it is met)."""
    for (network, form), built in found.items():
        for capability, engine in built.engines.items():
            where = f"{network} {form} on {capability}"
            long = [reason for reason in engine.split.values() if engine.largest_tokens >= _LONG]
            yield f"every attention of {_LONG} tokens or more is one kernel", where, not long
            if form in FLOATS:
                continue
            yield "every layer as planned", f"{where} ({engine.as_planned} of {engine.planned})", engine.as_planned == engine.planned
            whole, half = (found.get((network, dtype)) for dtype in FLOATS)
            if whole and form in MOST_WEIGHTS:
                share = engine.weights_bytes / whole.engines[capability].weights_bytes
                yield f"weights at most {MOST_WEIGHTS[form]} × FP32's", f"{where} ({share:.3f})", share <= MOST_WEIGHTS[form]
            if half and form in ("w8a8", "fp8"):
                ratio = engine.kernels / half.engines[capability].kernels
                yield f"kernels at most {MOST_KERNELS} × FP16's", f"{where} ({ratio:.2f})", ratio <= MOST_KERNELS


def _table(found: Mapping[tuple[str, str], Built], network: str, capability: str) -> Iterator[str]:
    whole = found.get((network, "fp32"))
    yield from (f"## {network}, compute capability {capability}", "")
    yield "| format | as planned | attention | kernels | weights | activations | file |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for form in FORMS:
        built = found.get((network, form))
        if built is None or capability not in built.engines:
            continue
        engine = built.engines[capability]
        share = f", {engine.weights_bytes / whole.engines[capability].weights_bytes:.3f}" if whole else ""
        planned = "–" if form in FLOATS else f"{engine.as_planned} of {engine.planned}"
        sizes = [
            f"{engine.weights_bytes / 1e6:.2f} MB{share}",
            *(f"{n / 1e6:.1f} MB" for n in (engine.activation_bytes, engine.engine_bytes)),
        ]
        cells_of = [form, planned, f"{engine.fused} of {engine.attentions}", str(engine.kernels), *sizes]
        yield f"| {' | '.join(cells_of)} |"
    yield ""


def _split(found: Mapping[tuple[str, str], Built]) -> list[str]:
    """Attentions that are not one kernel, with the builder's reason; of fp32 none is."""
    listed = [
        f"- {network}, {form}, {capability}: {attention}: {reason}"
        for (network, form), built in found.items() for capability, engine in built.engines.items()
        for attention, reason in engine.split.items() if form != "fp32"
    ]  # fmt: skip
    return ["Attentions that are not one kernel:", "", *listed] if listed else ["Every attention of 16-bit types is one kernel."]


def gpus() -> dict[str, tuple[str, Peaks]]:
    """Each GPU's compute capability and documented peaks."""
    made = {}
    for name, (capability, multiprocessors, clock_ghz, memory_gb_s) in _GPUS.items():
        bus = 256  # whatever it is: the bandwidth is what is known
        peaks = peaks_of(
            capability, multiprocessors=multiprocessors, clock_hz=clock_ghz * 1e9, memory_hz=memory_gb_s * 1e9 * 8 / (2 * bus), bus_bits=bus
        )
        assert peaks is not None
        made[name] = capability, peaks
    return made


def _estimates(found: Mapping[tuple[str, str], Built]) -> Iterator[str]:
    named = gpus()
    yield "| network | format | " + " | ".join(named) + " |"
    yield "|---|---|" + "---:|" * len(named)
    for (network, form), built in found.items():
        if form != "fp32":
            yield f"| {network} | {form} | " + " | ".join(_least(built, *of_gpu) for of_gpu in named.values()) + " |"


def _least(built: Built, capability: str, peaks: Peaks) -> str:
    plan = _PLAN_OF.get(capability, capability)
    if plan not in built.engines:
        return "–"
    least = roofline(Work(built.macs[plan], built.engines[plan].weights_bytes), peaks, BATCH)
    return f"{1e3 * least.floor_ms:.1f}, {least.bound}" + "".join(f", {name} not counted" for name in least.uncounted)
