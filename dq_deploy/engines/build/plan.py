"""Everything that is checked before a build starts: the compute capabilities, the number formats, the shapes, the graph file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...artifacts import Artifact
from ...artifacts.details import BundleDetails, GraphInput
from ...artifacts.reading import check_onnx
from ...errors import ArtifactError, UsageError
from ..descriptors.descriptor import EngineDescriptor, capability_of
from ..descriptors.registry import builders
from ..devices.gpu_names import capabilities_of_names
from ..layer_report import op_of, planned_format
from .profiles import Range
from .request import ShapeRange

_NAMED = 4  # layers in a message
_LARGEST_BATCH = 8


def check_capabilities(engine: EngineDescriptor, capabilities: Sequence[str] | None) -> list[tuple[int, int] | None]:
    """The (major, minor) to build for, one entry a build; None stands for this machine's own device.

    Raises UsageError naming every compute capability that the engine cannot be built for.
    """
    builder = engine.building
    if not builder.compute_capabilities:
        if capabilities:
            ahead = [f"--backend {name}" for name, other in builders().items() if other.building.compute_capabilities]
            raise UsageError(
                f"backend {engine.name} builds for the {builder.device}, so --compute-capability does not apply",
                f"leave it out, or choose {' or '.join(ahead)} to build ahead of time",
            )
        return [None]
    known = ", ".join(builder.compute_capabilities)
    chosen = list(dict.fromkeys(builder.default_capabilities if capabilities is None else capabilities))
    if not chosen:
        raise UsageError("no compute capability was given", f"choose among: {known}")
    if unknown := [capability for capability in chosen if capability not in builder.compute_capabilities]:
        reasons = [
            *capabilities_of_names(unknown),
            *(builder.elsewhere[capability] for capability in unknown if capability in builder.elsewhere),
        ]
        raise UsageError(
            f"{engine.title} cannot build for compute capability {', '.join(unknown)}", "; ".join([*reasons, f"it builds for: {known}"])
        )
    return [capability_of(capability) for capability in chosen]


def check_formats(engine: EngineDescriptor, bundle: Artifact[BundleDetails], capabilities: Sequence[tuple[int, int] | None]) -> None:
    """Raise ArtifactError for layers that are planned in a number format that the engine does not take on one of the devices.

    It names every such format and device with the first few of the layers, and says what takes them.
    """
    planned = [(layer, planned_format(layer)) for layer in bundle.details.layers]
    devices = [None if capability is None else "{}.{}".format(*capability) for capability in capabilities]
    refused: dict[tuple[str, str], list[str]] = {}
    for device in devices:
        for layer, format_ in planned:
            if not engine.takes(format_, op_of(layer.op), device):
                refused.setdefault((format_, device or engine.building.device), []).append(layer.name)
    if refused:
        what = (f"{format_.upper()} on {device}: {_some(names)}" for (format_, device), names in refused.items())
        hints = dict.fromkeys(_instead(engine, format_, device) for format_, device in refused)
        raise ArtifactError(f"{engine.title} does not multiply in the formats of these layers. {'; '.join(what)}", "\n".join(hints))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _instead(engine: EngineDescriptor, format_: str, device: str) -> str:
    """What to do about layers in a format that an engine does not take everywhere, or not at all."""
    lowest = min((p.capability for p in engine.products if p.format == format_ and p.capability), default=None)
    there = f"{format_.upper()} needs compute capability {'.'.join(map(str, lowest))} or newer; " if lowest else ""
    if format_ == "fp4" and lowest and engine.takes("fp8", "gemm", device):
        return f"{there}quantize for {device} in FP8 (--preset fp8) or INT8 (--preset w8a8)"
    return f"{there}quantize for this device in INT8: --preset w8a8"


def default_batch(details: BundleDetails) -> Range:
    """(min, opt, max) of the batch: from one sample on, best for one image with the guidance that was calibrated, at most eight samples."""
    return 1, details.samples_per_image, max(_LARGEST_BATCH, details.samples_per_image)


def input_profile(inputs: Sequence[GraphInput], batch: Range, sizes: Mapping[str, Range]) -> dict[str, ShapeRange]:
    """(min, opt, max) shapes of every graph input.

    ``sizes`` has the range of every such name besides "batch".

    Raises UsageError for a range that is not 1 ≤ min ≤ opt ≤ max, and for dimensions without a range and ranges without a dimension.
    """
    ranges = {"batch": batch, **sizes}
    bad = [f"{name} {values}" for name, values in ranges.items() if not _ascending(values)]
    if bad:
        raise UsageError(f"not a range: {'; '.join(bad)}", "give three integers MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX")
    symbols = {size for entry in inputs for size in entry.shape if isinstance(size, str)}
    if missing := sorted(symbols - ranges.keys()):
        raise UsageError(f"the graph has the dynamic dimension(s) {', '.join(missing)}, which need a range (MIN, OPT, MAX)")
    if extra := sorted(sizes.keys() - symbols):
        raise UsageError(f"the graph has no dynamic dimension {', '.join(extra)}", f"it has: {', '.join(sorted(symbols)) or 'none'}")
    return {entry.name: _shape_range(entry.shape, ranges) for entry in inputs}


def _ascending(values: Sequence[int]) -> bool:
    if len(values) != 3:
        return False
    smallest, usual, largest = values
    return 1 <= smallest <= usual <= largest


def _shape_range(shape: Sequence[int | str], ranges: Mapping[str, Range]) -> ShapeRange:
    smallest, usual, largest = (tuple(ranges[size][i] if isinstance(size, str) else size for size in shape) for i in range(3))
    return smallest, usual, largest


def check_graph(bundle: Artifact[BundleDetails]) -> Any:
    """The bundle's graph; refuse a file that is not ONNX, or not the one that its manifest describes.

    The builder's parser opens whatever file the graph names as external data, so each must be one that the manifest lists and whose hash
    has been verified. Raises ArtifactError for a file that is not an ONNX graph, other inputs than the manifest's, or a foreign data file.
    """
    path = bundle.file("model.onnx")
    model = check_onnx(path, listed=bundle.manifest.files)
    declared = {entry.name: len(entry.shape) for entry in bundle.details.inputs}
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
