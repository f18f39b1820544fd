"""Timing: fair turns, honest intervals, a gate that holds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy.artifacts import Artifact, Manifest, create_artifact
from dq_deploy.engines.bench import Contender, bench, contenders_from
from dq_deploy.errors import ArtifactError, PerformanceGateError, UsageError


class Waiter:
    """A runner that takes a known time."""

    name = "waiter"

    def __init__(self, ms: float = 0.0, output: float = 1.0, log: list[str] | None = None, **details: Any) -> None:
        self.ms, self.output, self.log = ms, output, log
        self.details = details

    def run(self, inputs: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        end = time.perf_counter() + self.ms / 1e3
        while time.perf_counter() < end:
            pass
        if self.log is not None:
            self.log.append(self.name)
        return np.full((len(inputs["sample"]), 2), self.output)


def contender(name: str, **options: Any) -> Contender:
    runner = Waiter(**options)
    runner.name = name
    return Contender(name, runner, lambda batch: [{"sample": np.zeros((batch, 2)), "timestep": np.float32(t)} for t in (0, 500)])


def test_known_times_are_found() -> None:
    # Long enough that a busy machine's late wake-ups do not count.
    result = bench([contender("a", ms=20.0), contender("b", ms=60.0)], runs=8, warmup=1, batches=(1, 4))
    rows = {(row.contender, row.batch): row for row in result.rows}
    assert rows["a", 1].median_ms == pytest.approx(20.0, rel=0.3)
    assert rows["b", 4].ratio == pytest.approx(3.0, rel=0.3)
    assert rows["b", 4].ms_per_sample == pytest.approx(rows["b", 4].median_ms / 4)
    assert rows["b", 1].ratio_low <= rows["b", 1].ratio <= rows["b", 1].ratio_high
    assert not rows["b", 1].within_noise
    assert rows["a", 1].ratio == 1.0
    assert result.baseline == "a"


def test_equally_fast_is_within_the_noise() -> None:
    class Noisy(Waiter):
        def run(self, inputs: Mapping[str, Any]) -> np.ndarray[Any, Any]:
            self.ms = generator.uniform(0.1, 0.5)
            return super().run(inputs)

    generator = np.random.default_rng(0)
    pair = [Contender(name, Noisy(), contender("x").inputs) for name in "ab"]
    assert bench(pair, runs=40, warmup=0).rows[1].within_noise


def test_every_contender_runs_once_a_round_and_the_order_changes() -> None:
    log: list[str] = []
    bench([contender(name, log=log) for name in "abc"], runs=12, warmup=0)
    rounds = ["".join(log[i : i + 3]) for i in range(6, len(log), 3)]  # the first six compared the outputs
    assert len(rounds) == 12
    assert {"".join(sorted(turn)) for turn in rounds} == {"abc"}
    assert len(set(rounds)) > 2


def test_outputs_are_compared_with_the_baselines() -> None:
    rows = bench([contender("a"), contender("b", output=1.1), contender("c")], runs=2, warmup=0).rows
    assert [row.snr_db for row in rows] == [None, pytest.approx(20.0), None]
    with pytest.raises(ArtifactError, match="b gives NaN or Inf at batch size 2, timestep 0"):
        bench([contender("a"), contender("b", output=np.nan)], batches=(2,), runs=2, warmup=0)


def test_gate() -> None:
    pair = [contender("a", ms=0.5), contender("b", ms=1.5)]
    passed = bench(pair, baseline="b", runs=8, warmup=1, max_ratio=0.9)
    assert passed
    passed.enforce()
    failed = bench(pair, runs=8, warmup=1, max_ratio=1.1)
    assert not failed
    assert len(failed.rows) == 2
    with pytest.raises(
        PerformanceGateError, match=r"b takes [23]\.\d\d × the baseline's time at batch 1 \(95%: .* and at most 1.1 is allowed"
    ):
        failed.enforce()


def test_saturating_kernels_are_noted() -> None:
    fast, slow = contender("fast", int8_saturates=True, integer=True), contender("slow", int8_saturates=True, integer=False)
    notes = bench([contender("a"), fast, slow], runs=1, warmup=0).notes
    why = "this CPU has no VNNI, and OpenVINO's INT8 kernels saturate on it: "
    assert notes == [
        why + "the times of fast are real, the outputs are off (see their SNR)",
        why + "slow computed quantized layers in float, exactly and slowly",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 0, "batches": (0,)}, "batch size 0 is below 1; runs is 0, and at least 1 is needed"),
        ({"batches": ()}, "no batch size was given"),
        ({"warmup": -1}, "warmup is -1"),
        ({"max_ratio": float("nan")}, "max ratio is nan, and a positive number is needed"),
        ({"baseline": "c"}, "the baseline 'c' is not among the contenders\nthey are a, b"),
    ],
)
def test_settings_that_time_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench([contender("a"), contender("b")], **options)


def test_a_gate_with_nothing_to_compare_is_refused() -> None:
    with pytest.raises(UsageError, match="needs something to compare with"):
        bench([contender("a")], max_ratio=1.0)
    with pytest.raises(UsageError, match="nothing to time was given"):
        bench([])
    with pytest.raises(UsageError, match="two contenders are called 'a'"):
        bench([contender("a"), contender("a")])


def test_bundles_on_both_engines(tiny_bundle: Artifact) -> None:
    steps: list[str] = []

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Any]:
        steps.extend([description, str(total)])
        yield lambda count, note: steps.extend([note] * count)

    contenders = contenders_from([tiny_bundle], threads=1)
    assert [c.name for c in contenders] == ["bundle · onnxruntime", "bundle · openvino"]
    result = bench(contenders, batches=(1, 2), runs=3, warmup=1, baseline=str(tiny_bundle.path), progress=progress)
    assert len(result.rows) == 4
    assert all(row.snr_db is None or row.snr_db > 80 for row in result.rows)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["contenders"]["bundle · openvino"]["precision"] == "f32"
    assert result.machine["cores"] >= 1
    assert steps[:2] == ["timing", "20"]
    assert len(steps) == 22
    (forced,) = contenders_from([tiny_bundle.path], engines=["openvino-int8"])
    assert forced.name == "bundle · openvino-int8"
    assert forced.runner.details["integer"] is True


def test_what_cannot_be_timed_is_named(tiny_bundle: Artifact, tmp_path: Path) -> None:
    with create_artifact(tmp_path / "engine", Manifest(kind="engine", model="m")):
        pass
    with pytest.raises(ArtifactError, match="engine is not a valid engine of this dq-deploy: sample_shape: Field required"):
        contenders_from([tiny_bundle, tmp_path / "engine"])
    with pytest.raises(UsageError, match="the same artefact is given twice"):
        contenders_from([tiny_bundle, tiny_bundle.path])
