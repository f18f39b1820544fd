from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.exporters.scales import select_table_rows
from dq_deploy.quantization import numerics

DENSE = [0.0, 1.0, 2.0]
EVEN = [0.0, 50.0, 100.0, 950.0]
UNEVEN = [0.1, 0.30000001192092896, 33.3, 999.0]


def selection(timesteps: list[float], *, per_sample: bool) -> onnxruntime.InferenceSession:
    """The row selection alone, as the target writes it."""
    timestep = ir.Value(name="timestep", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch"] if per_sample else [1]))
    graph = ir.Graph([timestep], [], nodes=[], opset_imports={"": 21}, name="rows")
    row = select_table_rows(graph, timestep, torch.tensor(timesteps), per_sample=per_sample)
    row.shape = ir.Shape(["batch"] if per_sample else [])
    graph.outputs.append(row)
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


SESSIONS = {
    (name, per_sample): (table, selection(table, per_sample=per_sample))
    for name, table in {"one": [500.0], "dense": DENSE, "even": EVEN, "uneven": UNEVEN}.items()
    for per_sample in (True, False)
}


def check(key: tuple[str, bool], asked: np.ndarray) -> None:
    timesteps, session = SESSIONS[key]
    expected = numerics.select_table_rows(torch.from_numpy(asked), numerics.midpoints(timesteps)).tolist()
    if key[1]:
        assert session.run(None, {"timestep": asked})[0].tolist() == expected
    else:
        assert [int(session.run(None, {"timestep": asked[i : i + 1]})[0]) for i in range(len(asked))] == expected


@pytest.mark.parametrize("key", SESSIONS)
def test_edges_select_the_row_that_python_selects(key: tuple[str, bool]) -> None:
    timesteps = np.array(SESSIONS[key][0], dtype=np.float32)
    middle = numerics.midpoints(timesteps.tolist()).numpy()
    around = [np.nextafter(v, np.float32(way)) for v in middle for way in (-np.inf, np.inf)]
    edges = [*timesteps, *middle, *around, -1e30, -1.0, 0.0, 1e30, np.inf, -np.inf]
    check(key, np.array(edges, dtype=np.float32))


@pytest.mark.parametrize("key", SESSIONS)
@settings(max_examples=30)
@given(asked=st.lists(st.floats(-100, 1100, width=32), min_size=1, max_size=8))
def test_random_timesteps_select_the_row_that_python_selects(key: tuple[str, bool], asked: list[float]) -> None:
    check(key, np.array(asked, dtype=np.float32))


@pytest.mark.parametrize("per_sample", [True, False])
def test_a_midpoint_goes_to_the_smaller_timestep(per_sample: bool) -> None:
    session = SESSIONS["even", per_sample][1]
    for t, row in ((25.0, 0), (75.0, 1), (525.0, 2), (25.001, 1)):
        assert int(np.ravel(session.run(None, {"timestep": np.array([t], dtype=np.float32)})[0])[0]) == row


def test_a_step_index_or_another_order_would_be_wrong() -> None:
    """The selection is by value: what another schedule asks for goes to its nearest row."""
    session = SESSIONS["even", True][1]
    assert session.run(None, {"timestep": np.array([949.0, 3.0, 60.0], dtype=np.float32)})[0].tolist() == [3, 0, 1]
