"""The page: what is fused, and what both ways come to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .conditions import CAPABILITIES, CASES, Outcome
from .networks import NETWORKS, WAYS, Built, Engine

HERE = Path(__file__).parent
PAGE = HERE.parent / "ATTENTION.md"
RESULTS = HERE / "results"
_INTRODUCTION = """\
# Attention in one kernel

`python -m benchmarks.engines.attention` writes this page. The kernels are those that TensorRT-RTX {version} *chose*, ahead of time, no GPU;
none was executed and none was timed.

## What the compiler fuses

One attention in a small float graph, fp16, four heads of 64 channels and 256 tokens unless the row says otherwise, built for compute
capability {capabilities}. None of our rewrites is in it. "fused": one kernel has q·kᵀ, the softmax and P·v.

| | fused | kernels (8.9) |
|---|---|---:|
"""
_NETWORKS = """
## Networks

W8A8 with INT8 attention (`export --attention int8`) and as the default has it (`auto`), with scale tables (`--activations
per-timestep`); weights and activations in MB, activations at batch 8, the largest that was built for.

| | compute capability | attention | fused | kernels | layers as planned | activations | weights | engine file |
|---|---|---|---:|---:|---:|---:|---:|---:|
"""


def load_conditions(folder: Path = RESULTS) -> dict[str, Outcome]:
    """Recorded cases by name."""
    return {name: Outcome.model_validate_json(file.read_text()) for name in CASES if (file := folder / f"{slug(name)}.json").is_file()}


def load_networks(folder: Path = RESULTS) -> dict[str, Built]:
    """Recorded networks by name."""
    return {name: Built.model_validate_json(file.read_text()) for name in NETWORKS if (file := folder / f"{slug(name)}.json").is_file()}


def slug(name: str) -> str:
    """A name as a file has it."""
    return "".join(c if c.isalnum() else "-" for c in name.lower().replace("×", "x")).replace("--", "-").strip("-")


def page(conditions: Mapping[str, Outcome], networks: Mapping[str, Built]) -> str:
    """The page, in Markdown."""
    version = ", ".join(sorted({built.version for built in networks.values()}))
    lines = [_INTRODUCTION.format(version=version, capabilities=", ".join(CAPABILITIES)).rstrip("\n")]
    lines += [f"| {name} | {_fused(outcome)} | {outcome.kernels.get('8.9', '–')} |" for name, outcome in conditions.items()]
    lines.append(_NETWORKS.rstrip("\n"))
    lines += [
        _row(name, capability, way, built.engines[way][capability])
        for name, built in networks.items() for capability in built.engines[WAYS[0]] for way in WAYS
    ]  # fmt: skip
    missing = [name for name in (*CASES, *NETWORKS) if name not in conditions and name not in networks]
    lines += ["", f"Not measured: {'; '.join(missing)}."] if missing else []
    return "\n".join([*lines, *_split(networks)]) + "\n"


def _fused(outcome: Outcome) -> str:
    apart = [capability for capability, fused in outcome.fused.items() if not fused]
    words = "yes" if not apart else "no" if len(apart) == len(outcome.fused) else f"not on {', '.join(apart)}"
    return words + (f"; refused on {', '.join(outcome.refused)}" if outcome.refused else "")


def _row(name: str, capability: str, way: str, engine: Engine) -> str:
    sizes = (engine.activation_bytes, engine.weights_bytes, engine.engine_bytes)
    cells = [
        name,
        capability,
        way,
        f"{engine.fused} of {engine.attentions}",
        str(engine.kernels),
        f"{engine.as_planned} of {engine.planned}",
    ]
    return f"| {' | '.join([*cells, *(f'{size / 1e6:.1f}' for size in sizes)])} |"


def _split(networks: Mapping[str, Built]) -> list[str]:
    """Attentions of the default that are not one kernel."""
    split = {f"{name}: {attention}": reason for name, built in networks.items() for engine in built.engines["auto"].values()
             for attention, reason in engine.split.items()}  # fmt: skip
    listed = [f"- {attention}: {reason}" for attention, reason in split.items()] or [
        "Every attention of the default exports is one kernel."
    ]
    return ["", *listed]
