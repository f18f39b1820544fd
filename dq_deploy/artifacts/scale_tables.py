"""The scale tables of a checkpoint or a bundle, read without torch and without any runtime.

A checkpoint has them in its safetensors, a bundle among the initializers of its graph (``formats/tables.py`` has their names and layout);
a zero-point that is 0 may not be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from pydantic import model_validator

from ..errors import ArtifactError, UsageError, did_you_mean
from ..formats import ScaleSource
from ..formats.tables import CLIPPING_RATIO, INVERSE_SCALE, RELATIVE_SCALE, SCALE, UINT8_OFFSET, ZERO_POINT
from .details import BundleDetails, CheckpointDetails, ScheduleDetails
from .folder import Artifact
from .reading import read_arrays, read_onnx
from .records import Record


class ScaleTable(Record):
    """One activation quantizer's table: [T] each, T rows for the T calibrated timesteps.

    ``per_token``: scales are computed from each token's values, and these are the clipping ratios that they are multiplied with.
    """

    timesteps: list[float]
    scales: list[float]
    zero_points: list[int]
    per_token: bool = False

    @model_validator(mode="after")
    def _same_length(self) -> ScaleTable:
        if not len(self.timesteps) == len(self.scales) == len(self.zero_points) or not self.timesteps:
            raise ValueError(f"{len(self.timesteps)} timesteps, {len(self.scales)} scales and {len(self.zero_points)} zero-points")
        return self

    def summary(self) -> dict[str, Any]:
        """The table in a few numbers, as plain JSON. ``spread`` is the largest scale over the smallest."""
        return {
            "rows": len(self.scales),
            **({"per_token": True} if self.per_token else {}),
            "scale": {"min": min(self.scales), "max": max(self.scales), "first": self.scales[0], "last": self.scales[-1]},
            "spread": max(self.scales) / min(self.scales) if min(self.scales) > 0 else None,
            "zero_point": {
                "min": min(self.zero_points),
                "max": max(self.zero_points),
                "first": self.zero_points[0],
                "last": self.zero_points[-1],
            },
        }


def read_tables(artifact: Artifact) -> dict[str, ScaleTable]:
    """Tables by quantizer, in the network's order; none for the float baseline.

    Raises UsageError (an engine, which has its tables inside; a schedule, whose members have them) and ArtifactError (a table that is
    missing or does not fit the timesteps).
    """
    timesteps = artifact.manifest.timesteps
    computed = _computed(artifact)
    return {
        name: _table(artifact, name, table_rows, timesteps, per_token=name in computed)
        for name, table_rows in read_table_rows(artifact).items()
    }


def read_table_rows(artifact: Artifact) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scales and zero-points by quantizer, every row that there is: [T], interpolated ones between them in a bundle, or one for all [1].

    Of computed scales the clipping ratios; scales of blocks have no table.

    Raises as ``read_tables`` does.
    """
    details = artifact.details
    if isinstance(details, ScheduleDetails):
        raise UsageError(f"{artifact.path} is a schedule, and each of its members has its own tables", f"inspect {artifact.path}/1")
    if not isinstance(details, BundleDetails | CheckpointDetails):
        raise UsageError(
            f"{artifact.path} is an engine, whose tables cannot be read back", "inspect the bundle or checkpoint that it is from"
        )
    names = list(dict.fromkeys(entry.name for entry in details.quantizers if not entry.block))
    if not names:
        return {}
    arrays = _checkpoint_arrays(artifact, names) if isinstance(details, CheckpointDetails) else _bundle_arrays(artifact, names)
    computed = _computed(artifact)
    return {name: _ratios(artifact, name, arrays) if name in computed else _table_rows(artifact, name, arrays) for name in names}


def _computed(artifact: Artifact) -> set[str]:
    """Quantizers whose scales are computed when the network runs."""
    details = artifact.details
    known = details.quantizers if isinstance(details, BundleDetails | CheckpointDetails) else []
    return {entry.name for entry in known if entry.source is ScaleSource.COMPUTED}


def select_tables(artifact: Artifact, tables: Mapping[str, ScaleTable], pattern: str) -> dict[str, ScaleTable]:
    """Those whose quantizer, or a layer that reads it, matches (fnmatch). Raises UsageError when none does."""
    readers: dict[str, list[str]] = {}
    layers = artifact.details.layers if isinstance(artifact.details, BundleDetails | CheckpointDetails) else []
    for layer in layers:
        for quantizer in layer.quantizers:
            readers.setdefault(quantizer, []).append(layer.name)
    chosen = {n: t for n, t in tables.items() if any(fnmatchcase(candidate, pattern) for candidate in (n, *readers.get(n, ())))}
    if not chosen:
        near = did_you_mean([pattern], [*(name for names in readers.values() for name in names), *tables])
        raise UsageError(
            f"no quantizer or layer matches '{pattern}'", near.strip() or f"dq-deploy inspect {artifact.path} --layer '*' shows them all"
        )
    return chosen


def _ratios(artifact: Artifact, name: str, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Clipping ratios of computed scales; a graph has them over the largest code."""
    zero_point = np.zeros(1, dtype=np.int64)
    if (ratio := arrays.get(f"{name}.{CLIPPING_RATIO}")) is not None:
        return ratio.reshape(-1), zero_point
    relative, details = arrays.get(f"{name}.{RELATIVE_SCALE}"), artifact.details
    formats = {layer.activation_format for layer in getattr(details, "layers", ()) if name in layer.quantizers}
    if relative is None or len(formats) != 1:
        raise ArtifactError(f"{artifact.path} has no table of clipping ratios for quantizer '{name}', which its manifest names")
    return relative.reshape(-1) * np.float32(formats.pop().largest), zero_point


def _table_rows(artifact: Artifact, name: str, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    scale, zero_point = arrays.get(f"{name}.{SCALE}"), arrays.get(f"{name}.{ZERO_POINT}", np.zeros(()))
    if scale is None:
        inverse = arrays.get(f"{name}.{INVERSE_SCALE}")
        if inverse is None:
            raise ArtifactError(f"{artifact.path} has no scale table for quantizer '{name}', which its manifest names")
        scale = np.float32(1) / inverse  # a constant that only its inverse is left of
    if zero_point.dtype == np.uint8:
        zero_point = zero_point.astype(np.int16) - UINT8_OFFSET
    return scale.reshape(-1), zero_point.reshape(-1)


def _table(
    artifact: Artifact, name: str, table_rows: tuple[np.ndarray, np.ndarray], timesteps: list[float], *, per_token: bool
) -> ScaleTable:
    found = []
    for what, array in zip(("scale", "zero-point"), table_rows, strict=True):
        calibrated = _calibrated(array, len(timesteps))
        if calibrated is None:
            raise ArtifactError(f"{artifact.path}: quantizer '{name}' has {array.size} {what} rows for {len(timesteps)} timesteps")
        found.append(np.broadcast_to(calibrated, len(timesteps)))
    scales, zero_points = found
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise ArtifactError(f"{artifact.path}: quantizer '{name}' has scales or clipping ratios that are not positive numbers")
    shifts = zero_points.astype(int).tolist()
    return ScaleTable(timesteps=timesteps, scales=scales.astype(float).tolist(), zero_points=shifts, per_token=per_token)


def _calibrated(table: np.ndarray, table_rows: int) -> np.ndarray | None:
    """The rows of the calibrated timesteps; a bundle has as many interpolated ones between each two. None where the number does not fit."""
    if table.size == 1:
        return table
    gaps = max(table_rows - 1, 1)
    return table[:: (table.size - 1) // gaps] if table.size >= table_rows and (table.size - 1) % gaps == 0 else None


def _checkpoint_arrays(artifact: Artifact, names: list[str]) -> dict[str, np.ndarray]:
    return read_arrays(
        artifact.file("model.safetensors"), [f"{name}.{part}" for name in names for part in (SCALE, ZERO_POINT, CLIPPING_RATIO)]
    )


def _bundle_arrays(artifact: Artifact, names: list[str]) -> dict[str, np.ndarray]:
    """From the protobuf alone: tables are small, so exports never move them to the external data."""
    import onnx

    path = artifact.file("model.onnx")
    tables = {f"{name}.{part}" for name in names for part in (SCALE, ZERO_POINT, INVERSE_SCALE, RELATIVE_SCALE)}
    found = [tensor for tensor in read_onnx(path).graph.initializer if tensor.name in tables]
    if outside := [tensor.name for tensor in found if tensor.data_location == tensor.EXTERNAL]:
        raise ArtifactError(f"{path}: the table {outside[0]} is kept in external data, where no export puts one")
    try:
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in found}
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path}: a scale table cannot be read ({error})") from None
