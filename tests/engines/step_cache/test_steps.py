"""What is kept from step to step, and the steps that always run in full."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler

from dq_deploy.engines.step_cache.steps import CacheReport, Kept, Run, condition_key, relative_change

KEPT = Kept(np.zeros(1), np.zeros(1))


def ends(timesteps: list[float], span: tuple[float, float] | None = None) -> list[int]:
    """The steps that must run in full."""
    run = Run(span or (min(timesteps), max(timesteps)))
    found = []
    for place, timestep in enumerate(timesteps):
        run.visit(timestep)
        if run.at_an_end:
            found.append(place)
    return found


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [4, 20, 50])
def test_the_first_and_the_last_step_of_a_schedule(spacing: str, steps: int) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert ends(scheduler.timesteps.tolist()) == [0, steps - 1]


def test_uneven_strides_of_flow_matching_and_networks_whose_timesteps_rise() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(20)
    timesteps = scheduler.timesteps.tolist()
    assert ends(timesteps) == [0, 19]
    assert ends([1 - t / 1000 for t in timesteps]) == [0, 19]


def test_a_sampler_of_second_order_visits_timesteps_twice() -> None:
    scheduler = HeunDiscreteScheduler()
    scheduler.set_timesteps(5)
    timesteps = scheduler.timesteps.tolist()
    found = ends(timesteps)
    assert timesteps[found[-1]] == timesteps[-1]
    assert found[0] == 0
    assert len(found) < len(timesteps)


def test_other_steps_than_the_calibrated_ones() -> None:
    """Fewer and more steps than calibrated: the last is among those in full."""
    assert ends([900.0, 600.0, 300.0, 0.0], (0.0, 950.0)) == [0, 3]
    assert ends([float(t) for t in range(980, -1, -20)], (49.0, 999.0)) == [0, 46, 47, 48, 49]


def test_what_is_kept_goes_when_the_timesteps_turn_back() -> None:
    run = Run((0.0, 900.0))
    for timestep in (900.0, 600.0, 300.0):
        run.visit(timestep)
        run.keep("a", KEPT)
    assert not run.at_an_end
    run.visit(900.0)
    assert run.at_an_end
    assert not run.kept
    run.visit(600.0)
    assert not run.at_an_end


def test_a_timestep_that_comes_twice_is_still_the_first() -> None:
    """One step of two batches, or of the two halves of guidance: nothing says yet where the run goes."""
    assert ends([900.0, 900.0, 900.0], (0.0, 900.0)) == [0, 1, 2]


def test_of_many_conditions_the_last_are_kept() -> None:
    run = Run((0.0, 900.0))
    for key in "abcdea":
        run.keep(key, KEPT)
    assert list(run.kept) == ["c", "d", "e", "a"]
    run.forget()
    assert (run.timestep, dict(run.kept)) == (None, {})


def test_the_sample_that_moves_most_decides() -> None:
    before = np.stack([np.full((2, 3), 2.0), np.full((2, 3), -4.0)])
    now = before + np.array([0.5, 0.4])[:, None, None]
    assert relative_change(now, before) == pytest.approx(0.25)
    assert relative_change(before, before) == 0
    assert relative_change(before, np.zeros_like(before)) == np.inf
    assert np.isnan(relative_change(np.zeros((1, 2)), np.zeros((1, 2))))
    assert not relative_change(np.array([[np.nan]]), np.array([[1.0]])) < 1e9


def test_conditions_are_told_apart_by_value_type_and_shape() -> None:
    feeds = {"text": np.arange(6.0).reshape(2, 3), "mask": np.ones(2, bool), "sample": np.zeros(2)}
    names = ["text", "mask"]
    key = condition_key(feeds, names, (2, 3))
    assert key == condition_key({**feeds, "sample": np.ones(2)}, names, (2, 3))
    others = [{"text": feeds["text"] + 1}, {"text": feeds["text"].reshape(3, 2)}, {"mask": np.ones(2, np.int8)}]
    assert all(condition_key({**feeds, **other}, names, (2, 3)) != key for other in others)
    assert condition_key(feeds, names, (4, 3)) != key


def test_what_was_saved() -> None:
    report = CacheReport(calls=20, skipped=5, body_work=0.8)
    assert (report.skipped_share, report.saved_work) == (0.25, 0.2)
    assert CacheReport(calls=0, skipped=0, body_work=None).model_dump()["saved_work"] is None
