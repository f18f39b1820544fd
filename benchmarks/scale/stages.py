"""The stages, each run in a process of its own: what it makes and what it found out."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from dq_deploy.artifacts import open_artifact, sha256_file
from dq_deploy.console import Output

from .setting import FLOAT_BYTES, Setting

Result = dict[str, Any]
Stage = Callable[[Setting, Path, Output], Result]


def quantize(setting: Setting, folder: Path, out: Output) -> Result:
    """Module → checkpoint."""
    import dq_deploy

    start = time.perf_counter()
    with out.progress("random weights", 1) as advance:
        model = setting.model()
        advance()
    made = time.perf_counter() - start
    parameters = sum(p.numel() for p in model.parameters())
    checkpoint = dq_deploy.quantize(
        model, folder / "checkpoint", preset=setting.preset, scheduler=setting.scheduler(), sample_shape=setting.sample_shape,
        conditions=setting.conditions(), steps=setting.steps, calibration_samples=setting.calibration_samples,
        reference_samples=setting.reference_samples, dilation=setting.dilation, iterations=0, batch_size=setting.batch_size,
        seed=setting.seed, force=True, progress=out.progress,
    )  # fmt: skip
    details = checkpoint.details
    return {
        "parameters": parameters,
        "float_bytes": parameters * FLOAT_BYTES,
        "model_s": made,
        "layers": len(details.layers),
        "float_layers": len(details.float_layers),
        "float_mac_share": details.float_mac_share,
        "macs": sum(layer.macs for layer in [*details.layers, *details.float_layers]),
        "snr_db": details.snr_db["after_distillation"],
    }


def _export(target: Literal["tensorrt", "onnxruntime"]) -> Stage:
    def export(setting: Setting, folder: Path, out: Output) -> Result:  # noqa: ARG001  a stage's arguments
        import dq_deploy

        bundle = dq_deploy.export(folder / "checkpoint", folder / target, target=target, force=True, progress=out.progress)
        return {"data": external_data(bundle.path / "model.onnx"), "modules": sorted(sys.modules)}

    return export


def external_data(file: Path) -> Result:
    """Where a graph's large weights lie. Raises ValueError for a file that is not the one beside the graph."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    external = [t for t in model.graph.initializer if t.data_location == t.EXTERNAL]
    locations = {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
    if locations - {f"{file.name}.data"}:
        raise ValueError(f"{file} keeps weights in {', '.join(sorted(locations))}")
    return {"tensors": len(external), "locations": sorted(locations)}


def imports(setting: Setting, folder: Path, out: Output) -> Result:  # noqa: ARG001  a stage's arguments
    """Nothing but the modules that an export had imported."""
    names = (folder / "modules.txt").read_text().split()
    for name in names:
        with suppress(Exception):  # some exist only within another's import
            importlib.import_module(name)
    return {"modules": len(names)}


def again(setting: Setting, folder: Path, out: Output) -> Result:  # noqa: ARG001  a stage's arguments
    """The same checkpoint exported again: which files differ."""
    import dq_deploy

    first = open_artifact(folder / "tensorrt", "bundle")
    second = dq_deploy.export(folder / "checkpoint", folder / "again", target="qdq", force=True, progress=out.progress)
    names = sorted({*first.manifest.files, *second.manifest.files, "manifest.json"})
    paths = [(first.path / name, second.path / name) for name in names]
    return {"files": names, "differing": [a.name for a, b in paths if sha256_file(a) != sha256_file(b)]}


def _engine(capability: str) -> Stage:
    """The ``tensorrt`` bundle → a TensorRT-RTX engine."""

    def engine(setting: Setting, folder: Path, out: Output) -> Result:  # noqa: ARG001  a stage's arguments
        return _build(folder / "tensorrt", folder / "engine", capability, out)

    return engine


def _static_engine(capability: str) -> Stage:
    """The same graph with one row for every timestep → an engine, whose kernels are those of static scales."""

    def static_engine(setting: Setting, folder: Path, out: Output) -> Result:  # noqa: ARG001  a stage's arguments
        from .static_twin import write_static_twin

        if not (folder / "static").exists():
            write_static_twin(folder / "tensorrt", folder / "static")
        return _build(folder / "static", folder / "static-engine", capability, out)

    return static_engine


def _build(bundle: Path, output: Path, capability: str, out: Output) -> Result:
    import dq_deploy

    made = dq_deploy.build_engine(
        bundle, output, backend="tensorrt-rtx", compute_capabilities=[capability], force=True, progress=out.progress
    )
    (entry,) = made.manifest.details["engines"]
    return {"version": made.manifest.details["version"], **entry}


STAGES: dict[str, Stage] = {
    "quantize": quantize,
    "tensorrt": _export("tensorrt"),
    "onnxruntime": _export("onnxruntime"),
    "engine": _engine("8.9"),
    "imports": imports,
    "again": again,
    "static-engine": _static_engine("8.9"),
    "engine-12.0": _engine("12.0"),
    "static-engine-12.0": _static_engine("12.0"),
}
ROUTE = ("quantize", "tensorrt", "onnxruntime", "engine")
"""What a user runs; the other stages are there to judge it."""
OUTPUTS = {"quantize": "checkpoint", "imports": None, "engine-12.0": "engine", "static-engine-12.0": "static-engine"}
"""Folder that a stage writes, where it has not the stage's name."""
COST_ONLY = ("onnxruntime", "imports", "again")
"""What says nothing new of a second preset."""
