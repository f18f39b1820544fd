"""One cell: a model in one form, built for every compute capability of the study, and what the builder made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
from pydantic import BaseModel, ConfigDict

import dq_deploy
from dq_deploy.artifacts import Artifact, create_artifact, open_artifact
from dq_deploy.artifacts.details import BundleDetails
from dq_deploy.engines.build.engine import load_report
from dq_deploy.exporters.bundle import write_model

from .plain_static import plain_static

MODELS = {"UNet": "builtin:fashion-mnist-unet", "DiT": "builtin:fashion-mnist-dit"}
PRESETS = ("w8a8", "w6a6", "w4a8", "w4a4")
CAPABILITIES = ("8.9", "12.0")
KINDS = ("per-timestep", "static", "plain")
# Kernels depend on shapes, bits and which tables there are, not on the values: the cheapest calibration will do.
CHEAP: dict[str, Any] = {"iterations": 0, "dilation": "none", "calibration_samples": 2, "reference_samples": 1, "initial_range": "minmax"}
_FLOATS = ("fp32", "fp16")


class Engine(BaseModel):
    """What was built for one compute capability."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kernels: int
    gemm_kernels: int
    weights_bytes: int
    planned: int
    planned_int8: int
    not_int8: list[str]


class Cell(BaseModel):
    """A model, its precision ("fp32", "fp16" or a preset) and kind (of ``KINDS``, or "float"); compute capability → engine.

    ``clipped`` are the quantizers of fewer than 8 bits: so many clips may need a kernel more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str
    precision: str
    kind: str
    version: str
    clipped: int
    engines: dict[str, Engine]

    @property
    def name(self) -> str:
        """Name of its file."""
        return cell_name(self.model, self.precision, self.kind)


def cell_name(model: str, precision: str, kind: str) -> str:
    """A cell's file, without its suffix."""
    return f"{model.lower()}-{precision}-{kind}"


def cells() -> Iterator[tuple[str, str, str]]:
    """(model, precision, kind) of the whole study. The plain form has no clips, so only 8-bit activations have it."""
    for model in MODELS:
        yield from ((model, precision, "float") for precision in _FLOATS)
        for preset in PRESETS:
            yield from ((model, preset, kind) for kind in KINDS if kind != "plain" or preset.endswith("a8"))


def measure(model: str, precision: str, kind: str) -> Cell:
    """Quantize, export and build."""
    with TemporaryDirectory(prefix="dq-deploy-engines-") as name:
        folder = Path(name)
        options = {**CHEAP, "activations": "per-timestep" if kind == "per-timestep" else "static", "zero_points": kind != "plain"}
        is_float = precision in _FLOATS
        checkpoint = dq_deploy.quantize(MODELS[model], folder / "checkpoint", preset="w8a8" if is_float else precision, **options)
        dtype = precision if is_float else "fp16"
        bundle = dq_deploy.export(checkpoint, folder / "bundle", target="qdq", dtype=dtype, attention="int8", float=is_float)
        if kind == "plain":
            bundle = rewritten(bundle, folder / "plain", plain_static)
        return build(bundle, folder / "engine", model=model, precision=precision, kind=kind)


def build(
    bundle: Artifact[BundleDetails], output: Path, *, model: str, precision: str, kind: str, capabilities: tuple[str, ...] = CAPABILITIES
) -> Cell:
    """Build an opened bundle and read its layer reports."""
    engine = dq_deploy.build_engine(bundle, output, backend="tensorrt-rtx", compute_capabilities=capabilities)
    reports = load_report(engine)
    layers = bundle.details.layers
    bits = {quantizer: layer.activation_bits for layer in layers for quantizer in layer.quantizers}
    engines = {}
    for report in reports:
        summary = report.summary()
        engines[report.compute_capability] = Engine(
            kernels=summary["kernels"], gemm_kernels=summary["gemm_kernels"], weights_bytes=summary["weights_bytes"],
            planned=summary["planned_layers"], planned_int8=summary["planned_int8"],
            not_int8=[*summary["not_int8"], *summary["not_found"]],
        )  # fmt: skip
    clipped = sum(1 for value in bits.values() if value < 8)
    return Cell(model=model, precision=precision, kind=kind, version=reports[0].version, clipped=clipped, engines=engines)


def rewritten(bundle: Artifact[BundleDetails], output: Path, change: Callable[[ir.Model], None]) -> Artifact[BundleDetails]:
    """A copy of the bundle with its graph changed in place; what is left is checked as every export is."""
    model = ir.load(bundle.file("model.onnx"))
    ir.external_data.load_to_model(model)
    change(model)
    with create_artifact(output, bundle.manifest.model_copy(deep=True)) as folder:
        write_model(model, folder / "model.onnx")
    return open_artifact(output, "bundle")
