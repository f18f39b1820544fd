"""Where OpenVINO's time goes, by kind of kernel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dq_deploy.engines.bench.contenders import Contender
from dq_deploy.engines.openvino.rewrites import rewrite

_RUNS, _SHOWN = 20, 8


def kernel_times(
    bundle: Path, contender: Contender, *, threads: int, integer: bool, ours: bool = True, batch: int = 1
) -> list[dict[str, Any]]:
    """The kinds of kernel that take most: how many, and milliseconds of one run. ``contender`` has the inputs.

    ``ours``: rewritten as our runner does it, where a user of OpenVINO alone has the graph as it is.
    """
    import openvino

    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": "YES"}
    if not integer:
        config["LP_TRANSFORMS_MODE"] = "NO"
    core = openvino.Core()
    model = core.read_model(str(bundle / "model.onnx"))
    values = {name: np.asarray(value) for name, value in contender.inputs(batch)[0].items()}
    values["timestep"] = np.full(batch, float(values["timestep"]), np.float32)
    model.reshape({name: list(value.shape) for name, value in values.items()})
    if ours:
        rewrite(model)
    request = core.compile_model(model, "CPU", config).create_infer_request()
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for number in range(_RUNS + 2):
        request.infer(values)
        for kernel in request.profiling_info if number >= 2 else ():
            kind = f"{kernel.node_type} ({kernel.exec_type})"
            milliseconds = kernel.real_time.total_seconds() * 1e3
            if milliseconds:
                times[kind] += milliseconds / _RUNS
                counts[kind] += 1
    return [{"kernel": kind, "count": round(counts[kind] / _RUNS), "ms": time} for kind, time in times.most_common(_SHOWN)]
