"""A graph that OpenVINO refuses in one form runs in another, and says so once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from dq_deploy.engines.loading.choice import make_runner
from dq_deploy.engines.openvino import runner as module
from dq_deploy.engines.openvino.ladder import WAYS, Way, compile_somehow
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.errors import ArtifactError
from tests.engines.openvino.test_rewrites import TIMESTEPS, gelu, noise, two_linears
from tests.flow import Flow


def taking(*names: str) -> Callable[[Way], str]:
    def compile_as(way: Way) -> str:
        if way.name not in names:
            raise RuntimeError(f"not {way.name}")
        return way.name

    return compile_as


@pytest.mark.parametrize(
    ("integer", "openable", "tried"),
    [
        (True, True, ["rewritten", "as exported", "with open sizes", "in float"]),
        (True, False, ["rewritten", "as exported", "in float"]),
        (False, True, ["rewritten", "as exported", "with open sizes"]),
    ],
)
def test_the_first_way_that_is_taken(integer: bool, openable: bool, tried: list[str]) -> None:
    for index, name in enumerate(tried):
        refused: list[str] = []
        compiled, way = compile_somehow(
            taking(name), integer=integer, openable=openable, refused=lambda w, _, seen=refused: seen.append(w.name)
        )
        assert (compiled, way.name) == (name, name)
        assert refused == tried[:index]
    with pytest.raises(RuntimeError, match="not rewritten"):
        compile_somehow(taking(), integer=integer, openable=openable, refused=lambda *_: None)


def test_a_graph_that_fits_no_kernel_runs_with_open_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_linears(gelu)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    monkeypatch.setattr(module, "rewrite", lambda _: None)  # which would fix it
    runner = OpenVinoRunner(tmp_path / "model.onnx", threads=1, integer=True)
    inputs = {"sample": noise(1, 48), "timestep": TIMESTEPS[:1]}
    with pytest.warns(RuntimeWarning, match="not enough registers") as told:
        found = runner.run(inputs)
    assert [str(w.message).partition(": ")[0].rpartition("model.onnx ")[2] for w in told] == ["rewritten", "as exported"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), disabled_optimizers=["GeluFusion"])
    np.testing.assert_allclose(found, session.run(None, inputs)[0], rtol=2e-3, atol=2e-3)
    assert runner.details["compiled"] == [{"shapes": {"sample": [1, 48], "timestep": [1]}, "way": "with open sizes"}]
    assert runner.details["integer"] is True


def refuse(*_: Any) -> Any:
    raise RuntimeError("this plugin has had enough")


def test_onnxruntime_takes_over_where_openvino_takes_nothing(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = flow.bundle("qdq")
    expected = make_runner(bundle, runtime="onnxruntime")
    inputs = {spec.name: noise(*(2 if size is None else size for size in spec.shape)) for spec in expected.specs}
    inputs["timestep"] = np.float32(3)
    monkeypatch.setattr(module, "_compile", refuse)
    runner = make_runner(bundle)
    assert runner.name == "openvino"
    with pytest.warns(RuntimeWarning, match="had enough.*onnxruntime runs it instead"):
        found = runner.run(inputs)
    np.testing.assert_array_equal(found, expected.run(inputs))
    assert (runner.name, runner.details["engine"], runner.details["instead_of"]) == ("onnxruntime", "onnxruntime", "openvino")
    np.testing.assert_array_equal(runner.run(inputs), found)
    with pytest.raises(ArtifactError, match="had enough"), pytest.warns(RuntimeWarning):
        make_runner(bundle, runtime="openvino").run(inputs)  # asked for by name: nothing else answers


def test_every_way_differs() -> None:
    assert len({(way.rewritten, way.fixed, way.integer) for way in WAYS}) == len({way.name for way in WAYS}) == len(WAYS)
