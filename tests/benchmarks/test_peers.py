"""What outside tools are told."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy.peers import _phases

pytest.importorskip("openvino")


def test_the_timesteps_sines_and_cosines_are_what_no_weight_has_met() -> None:
    import openvino
    from openvino import opset13 as ops

    sample, timestep = (ops.parameter([2, 4], np.float32, name=name) for name in ("sample", "timestep"))
    sample.output(0).set_names({"sample"})
    timestep.output(0).set_names({"timestep"})
    halved = ops.multiply(sample, np.float32(0.5), name="halved")
    phases = ops.multiply(timestep, np.float32([1, 0.1, 0.01, 0.001]), name="phases")
    waves = ops.concat([ops.sin(phases, name="sine"), ops.cos(phases, name="cosine")], axis=1, name="waves")
    embedded = ops.matmul(waves, np.ones((8, 4), np.float32), False, False, name="product")
    model = openvino.Model([ops.add(halved, embedded, name="sum")], [sample, timestep])

    assert set(_phases(model)) == {"phases", "sine", "cosine", "waves"}
