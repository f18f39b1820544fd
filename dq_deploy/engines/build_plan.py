"""Everything that is checked before a build starts: the backend, the compute capabilities, the shapes, the graph file."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from ..artifacts import Artifact
from ..artifacts.reading import check_onnx
from ..errors import ArtifactError, EnvironmentProblem, UsageError
from .build_request import Backend, ShapeRange

# What TensorRT-RTX 1.x compiles for ahead of time.
RTX_COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
DEFAULT_COMPUTE_CAPABILITIES = ("8.9", "12.0")
_DATA_CENTER = {"9.0": "Hopper", "10.0": "Blackwell for data centers", "10.3": "Blackwell for data centers"}
_MODULES: dict[Backend, tuple[str, ...]] = {
    "tensorrt-rtx": ("tensorrt_rtx", "polygraphy"),
    "tensorrt": ("tensorrt", "polygraphy"),
    "openvino": ("openvino",),
}

Range = tuple[int, int, int]


def check_backend(backend: str) -> Backend:
    """The backend, when it is one and importable here. Raises UsageError (unknown) or EnvironmentProblem (not installed)."""
    if backend not in _MODULES:
        raise UsageError(f"unknown engine backend '{backend}'", f"choose one of: {', '.join(_MODULES)}")
    known: Backend = next(name for name in _MODULES if name == backend)
    missing = [module for module in _MODULES[known] if importlib.util.find_spec(module) is None]
    if not missing:
        return known
    hint = f'install it with: python -m pip install "dq-deploy[{known}]"'
    if known == "tensorrt":
        hint += (
            "\nIts libraries come from NVIDIA's own package index, and it builds on a machine with an NVIDIA GPU only. "
            "Without one, --backend tensorrt-rtx builds ahead of time."
        )
    raise EnvironmentProblem(f"backend {known} needs the Python module(s) {', '.join(missing)}, which are not installed", hint)


def check_capabilities(backend: Backend, capabilities: Sequence[str] | None) -> list[tuple[int, int] | None]:
    """The (major, minor) to build for, one entry a build; None stands for this machine's own device.

    Raises UsageError naming every compute capability that the backend cannot compile for.
    """
    if backend != "tensorrt-rtx":
        if capabilities:
            device = "GPU of the machine that it runs on" if backend == "tensorrt" else "CPU"
            raise UsageError(
                f"backend {backend} builds for the {device}, so --compute-capability does not apply",
                "leave it out, or choose --backend tensorrt-rtx to build ahead of time",
            )
        return [None]
    chosen = list(dict.fromkeys(DEFAULT_COMPUTE_CAPABILITIES if capabilities is None else capabilities))
    if not chosen:
        raise UsageError("no compute capability was given", f"choose among: {', '.join(RTX_COMPUTE_CAPABILITIES)}")
    unknown = [capability for capability in chosen if capability not in RTX_COMPUTE_CAPABILITIES]
    if unknown:
        reasons = [f"{c} is {_DATA_CENTER[c]}, which only --backend tensorrt builds for" for c in unknown if c in _DATA_CENTER]
        raise UsageError(
            f"TensorRT-RTX cannot build for compute capability {', '.join(unknown)}",
            "; ".join([*reasons, f"it builds for: {', '.join(RTX_COMPUTE_CAPABILITIES)}"]),
        )
    return [_pair(capability) for capability in chosen]


def _pair(capability: str) -> tuple[int, int]:
    major, _, minor = capability.partition(".")
    return int(major), int(minor)


def input_profile(inputs: Sequence[Mapping[str, Any]], batch: Range, sizes: Mapping[str, Range]) -> dict[str, ShapeRange]:
    """(min, opt, max) shapes of every graph input.

    ``inputs`` are the bundle's ``details["inputs"]``: "name" and "shape", whose entries are sizes or the names of dynamic dimensions.
    ``sizes`` has the range of every such name besides "batch".

    Raises UsageError for a range that is not 1 ≤ min ≤ opt ≤ max, and for dimensions without a range and ranges without a dimension.
    """
    ranges = {"batch": batch, **sizes}
    bad = [f"{name} {values}" for name, values in ranges.items() if not _ascending(values)]
    if bad:
        raise UsageError(f"not a range: {'; '.join(bad)}", "give three integers MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX")
    symbols = {size for entry in inputs for size in entry["shape"] if isinstance(size, str)}
    if missing := sorted(symbols - ranges.keys()):
        raise UsageError(f"the graph has the dynamic dimension(s) {', '.join(missing)}, which need a range (MIN, OPT, MAX)")
    if extra := sorted(sizes.keys() - symbols):
        raise UsageError(f"the graph has no dynamic dimension {', '.join(extra)}", f"it has: {', '.join(sorted(symbols)) or 'none'}")
    return {entry["name"]: _shape_range(entry["shape"], ranges) for entry in inputs}


def _ascending(values: Sequence[int]) -> bool:
    if len(values) != 3:
        return False
    smallest, usual, largest = values
    return 1 <= smallest <= usual <= largest


def _shape_range(shape: Sequence[int | str], ranges: Mapping[str, Range]) -> ShapeRange:
    smallest, usual, largest = (tuple(ranges[size][i] if isinstance(size, str) else size for size in shape) for i in range(3))
    return smallest, usual, largest


def check_graph(bundle: Artifact) -> Any:
    """The bundle's graph; refuse a file that is none, or that is not the one that its manifest describes.

    The builder's parser opens whatever file the graph names as external data, so each must be one that the manifest lists and whose hash
    has been verified. Raises ArtifactError for a file that is no ONNX graph, other inputs than the manifest's, or a foreign data file.
    """
    path = bundle.file("model.onnx")
    model = check_onnx(path, listed=bundle.manifest.files)
    declared = {entry["name"]: len(entry["shape"]) for entry in bundle.manifest.details["inputs"]}
    actual = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.input}
    if declared != actual:
        raise ArtifactError(f"{path}: the graph's inputs {actual} (name: rank) are not the manifest's {declared}")
    return model


def output_spec(model: Any) -> dict[str, Any]:
    """Name, dtype (numpy's name) and shape of a model's output; a size is a number, a dynamic dimension's name, or None where unknown."""
    import onnx

    value = model.graph.output[0]
    tensor = value.type.tensor_type
    shape = [dim.dim_value or dim.dim_param or None for dim in tensor.shape.dim]
    return {"name": value.name, "dtype": str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), "shape": shape}
