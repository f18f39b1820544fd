"""The scale tables in the graph: row selection by the timestep's value, and one visible initializer per quantizer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from ..quantization.layers import ActivationQuantizer
from ..quantization.numerics import midpoints
from .emitter import Emitter

ROW = "dq_deploy.row"
"""Name of the value that holds the selected row(s)."""


def select_rows(graph: ir.Graph, timestep: ir.Value, timesteps: torch.Tensor, *, per_sample: bool) -> ir.Value:
    """Emit the row selection at the graph's start: compare with midpoints and sum. Gives [N] rows, or one scalar row.

    The same arithmetic as ``quantization.numerics.select_rows``: fp32, strictly greater, so that a midpoint goes to the smaller timestep.
    """
    emit = Emitter(graph, "row_selection", next(iter(graph), None))
    boundaries = midpoints(timesteps).numpy()
    if not len(boundaries):  # a table of one row: nothing lies above infinity
        boundaries = np.array([np.inf], dtype=np.float32)
    table = emit.constant("dq_deploy.boundaries", boundaries)
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
