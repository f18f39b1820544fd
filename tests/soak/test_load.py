"""Seconds of the load that ``make soak`` keeps up for ten minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from tests.soak.load import under_load

GOLDEN = Path(__file__).parents[1] / "golden" / "schema-1" / "bundle"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_eight_threads_get_the_results_of_one(runtime: Any) -> None:
    result = under_load(GOLDEN, runtime, 2)
    assert result.failures == []
    assert result.runs > 16


def test_a_wrong_result_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = OnnxRuntimeRunner._infer, iter(range(10**9))

    def sometimes_wrong(self: OnnxRuntimeRunner, feeds: Any) -> Any:
        return right(self, feeds) + np.float32(1e-3 * (next(calls) == 200))

    monkeypatch.setattr(OnnxRuntimeRunner, "_infer", sometimes_wrong)
    (failure,) = under_load(GOLDEN, "onnxruntime", 3).failures
    assert "results differ from the serial runs' by" in failure
