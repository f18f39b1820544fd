"""One cell: a network in one form, exported by default and built with TensorRT-RTX, and what the builder made of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

import dq_deploy
from benchmarks.engines.attention.networks import NETWORKS, Engine, engine_of
from benchmarks.engines.study import CAPABILITIES, CHEAP
from dq_deploy.artifacts.details import CheckpointDetails
from dq_deploy.engines.build.engine import load_report
from dq_deploy.engines.layer_report import LayerReport
from dq_deploy.engines.layer_report.roofline import work_of

FLOATS = ("fp32", "fp16")
FORMS: dict[str, dict[str, Any]] = {
    **{dtype: {"preset": "w8a8"} for dtype in FLOATS},
    **{preset: {"preset": preset} for preset in ("w8a8", "w4a8", "fp8", "w4a8-fp8", "nvfp4")},
    "nvfp4, rank 8": {"preset": "nvfp4", "low_rank": 8},
}
"""Name → options of its quantization; a float form is exported without."""
STUDIED = ("UNet", "DiT", "DiT-S/2, 32×32 latents")
_NARROW = ("12.0",)  # what has FP4


class Built(BaseModel):
    """A network in a form: compute capability → engine, and its multiply-accumulates for a sample by the precision that they run in."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    network: str
    form: str
    version: str
    engines: dict[str, Engine]
    macs: dict[str, dict[str, int]]


def cells() -> Iterator[tuple[str, str]]:
    """(network, form) of the whole study."""
    yield from ((network, form) for network in STUDIED for form in FORMS)


def capabilities(form: str) -> tuple[str, ...]:
    """What a form is built for."""
    return _NARROW if form.startswith("nvfp4") else CAPABILITIES


def measure(network: str, form: str, folder: Path) -> Built:
    """Quantize, export and build in an empty folder."""
    made = NETWORKS[network]
    model, is_float = made.make(), form in FLOATS
    # Kernels depend on shapes, bits and which tables there are, not on the values: tables everywhere, for a choice by layer would depend.
    options = {**CHEAP, "rounding": "nearest", "activations": "per-timestep", **({} if isinstance(model, str) else {"steps": 2})}
    checkpoint = dq_deploy.quantize(model, folder / "checkpoint", **{**options, **made.needs(), **FORMS[form]})
    dtype = form if is_float else "fp16"
    bundle = dq_deploy.export(checkpoint, folder / "bundle", target="qdq", dtype=dtype, float=is_float)
    built = dq_deploy.build_engine(bundle, folder / "engine", backend="tensorrt-rtx", compute_capabilities=capabilities(form))
    reports = load_report(built)
    return Built(
        network=network, form=form, version=built.details.version,
        engines={str(report.compute_capability): engine_of(built, report) for report in reports},
        macs={str(report.compute_capability): macs_of(report, checkpoint.details, dtype, is_float=is_float) for report in reports},
    )  # fmt: skip


def macs_of(report: LayerReport, details: CheckpointDetails, dtype: str, *, is_float: bool) -> dict[str, int]:
    """Multiply-accumulates by precision: of planned layers and fused attentions, and of what stays in ``dtype``, branches among it."""
    if is_float:
        return {dtype: sum(layer.macs for layer in [*details.layers, *details.float_layers])}
    macs = dict(work_of(report).macs)
    macs[dtype] = macs.get(dtype, 0) + sum(layer.macs for layer in details.float_layers if layer.op != "matmul")
    return macs
