"""When calibration samples and held-out ones part, and what is said of it."""

from __future__ import annotations

from dq_deploy.artifacts.final_error import FinalError, StepCost, most_clipped
from dq_deploy.artifacts.held_out import PARTED_DB, parted

T = [0.0, 50.0, 100.0]


def test_the_worst_timestep_is_named_with_both_figures_and_what_to_do() -> None:
    found = parted({"calibration_samples": [30.5, 40.0, 45.0], "after_distillation": [19.4, 32.0, 45.0]}, T)
    assert found is not None
    assert found.message({"calibration_samples": 8}) == (
        "at timestep 0 the samples calibrated on have 30.5 dB and held-out ones 19.4 dB; calibrate on more than 8: "
        "--calibration-samples 64, of as many different conditions as the model will see"
    )
    assert "--calibration-samples 128" in found.message({"calibration_samples": 64})


def test_what_chance_makes_is_not_said() -> None:
    below = PARTED_DB - 0.1
    assert parted({"calibration_samples": [20 + below, 20.0, 20.0], "after_distillation": [20.0, 20.0, 90.0]}, T) is None


def test_a_checkpoint_from_before_says_nothing() -> None:
    assert parted({"after_distillation": [20.0, 20.0, 20.0]}, T) is None


def test_a_final_error_in_a_line() -> None:
    steps = [
        StepCost(timesteps=[0.0], only_db=40.0, without_db=26.0, share=0.1),
        StepCost(timesteps=[50.0, 100.0], only_db=30.0, without_db=34.2, share=0.9),
    ]
    expected = "23.8 dB (2 seeds); timestep 50 to 100 makes 90% of the steps' separate errors (34.2 dB without)"
    assert FinalError(all_db=23.8, steps=steps, seeds=2).summary == expected
    assert FinalError(not_measured="the network predicts no step of a sample").summary == (
        "not measured: the network predicts no step of a sample"
    )
    assert FinalError(all_db=None, steps=[StepCost(timesteps=[0.0], only_db=None, without_db=None)]).summary == "no finite number"


def test_the_most_clipped_value() -> None:
    assert most_clipped({}, T) == "no value"
    assert most_clipped({"a": [0.0, 0.01, 0.0], "b": [0.001, 0.0, 0.2]}, T) == "20.000% of the values of b at timestep 100, at the most"
