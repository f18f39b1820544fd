"""The scale tables in the graph: row selection by the timestep's value, and one visible initializer for each table.

What tells such a table from one of the network's own, of embeddings say, is its name in the manifest's ``quantizers``
(``<quantizer>.scale``, ``<quantizer>.zero_point``) and, while the graph is written, the mark of scale arithmetic (``emitter.FP32_MARK``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ..formats.tables import BOUNDARIES, ROW, UINT8_OFFSET
from ..quantization.numerics import midpoints
from ..quantization.quantizers import ActivationQuantizer
from .emitter import Emitter


class TableRows:
    """The rows of tables [T, ...] that the timestep selects, [N, ...] or, not ``per_sample``, one for the batch."""

    def __init__(self, graph: ir.Graph, timestep: ir.Value, timesteps: torch.Tensor, *, per_sample: bool) -> None:
        self.graph, self.per_sample = graph, per_sample
        self._row = select_table_rows(graph, timestep, timesteps, per_sample=per_sample)
        self._of_frames = {1: self._row}
        self._gathered: dict[str, ir.Value] = {}

    def of(self, name: str, table: np.ndarray[Any, Any], frames: int = 1) -> ir.Value:
        """Rows [N·frames, ...] or [...] of one table [T, ...], gathered once, before its readers (why: docs/decisions/scale-tables.md)."""
        if name not in self._gathered:
            row = self._rows_of(frames if self.per_sample else 1)
            emit = Emitter(self.graph, name, after=row.producer())  # which stays where it is, unlike the placeholders that follow
            dtype = ir.DataType.from_numpy(table.dtype)
            self._gathered[name] = emit.op("Gather", [emit.constant(name, table), row], dtype=dtype, axis=0)
        return self._gathered[name]

    def _rows_of(self, frames: int) -> ir.Value:
        """The row of each frame [N·frames]: its sample's."""
        if frames not in self._of_frames:
            emit = Emitter(self.graph, f"row_selection_{frames}_frames", after=self._row.producer())
            row = emit.unsqueeze(self._row, 2, "Unsqueeze")
            row = emit.op("Expand", [row, emit.sizes(1, frames)], dtype=ir.DataType.INT32)
            self._of_frames[frames] = emit.op("Reshape", [row, emit.sizes(-1)], dtype=ir.DataType.INT32)
        return self._of_frames[frames]


def select_table_rows(graph: ir.Graph, timestep: ir.Value, timesteps: torch.Tensor, *, per_sample: bool) -> ir.Value:
    """Emit the row selection at the graph's start: compare with midpoints and sum. Gives [N] rows, or one scalar row.

    The same arithmetic as ``quantization.numerics.select_table_rows``: fp32, strictly greater, so a midpoint goes to the smaller timestep.
    """
    emit = Emitter(graph, "row_selection", next(iter(graph), None))
    boundaries = midpoints(timesteps).numpy()
    if not len(boundaries):  # a table of one row: nothing lies above infinity
        boundaries = np.array([np.inf], dtype=np.float32)
    table = emit.constant(BOUNDARIES, boundaries)
    if per_sample:
        axes = emit.constant("dq_deploy.axes_1_2", np.array([1], dtype=np.int64))
        timestep = emit.op("Unsqueeze", [timestep, axes])
    above = emit.op("Greater", [timestep, table], dtype=ir.DataType.BOOL)
    count = emit.op("Cast", [above], dtype=ir.DataType.INT32, to=ir.DataType.INT32)
    axis = emit.constant("dq_deploy.reduce_axis", np.array([1 if per_sample else 0], dtype=np.int64))
    return emit.op("ReduceSum", [count, axis], dtype=ir.DataType.INT32, output=ROW, keepdims=0)


def scale_array(quantizer: ActivationQuantizer) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Scales [T] fp32."""
    return quantizer.scale_table().numpy().astype(np.float32)


def zero_point_array(quantizer: ActivationQuantizer) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """Zero-points [T] int8."""
    return quantizer.zero_point_table().numpy()


def inverse_dilation(dilation: torch.Tensor, axis: int, rank: int) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """1 / dilation [C], shaped to broadcast along ``axis`` of an activation of this rank; None where nothing is dilated."""
    if bool((dilation == 1).all()):
        return None
    shape = [1] * rank
    shape[axis] = -1
    return (1 / dilation).numpy().reshape(shape)


def as_codes(value: np.ndarray[Any, Any] | int, dtype: ir.DataType) -> np.ndarray[Any, Any]:
    """The checkpoint's int8 codes or zero-points, of any shape, in a type of the graph."""
    offset = UINT8_OFFSET if dtype == ir.DataType.UINT8 else 0
    return (np.asarray(value, dtype=np.int16) + offset).astype(dtype.numpy())
