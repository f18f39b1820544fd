"""The least error within a budget: as good as an integer programme's, and within it where bytes do not fit the table."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, milp

from dq_deploy.quantization.bits import solve
from dq_deploy.quantization.bits.solve import Setting, least_error


def problem(seed: int, unit: int) -> tuple[list[list[Setting]], int]:
    """Twelve layers of two to four settings of sizes that are multiples of ``unit``, and a budget."""
    draw = np.random.default_rng(seed)
    layers = [[Setting(unit * int(draw.integers(0, 60)), float(draw.random())) for _ in range(draw.integers(2, 5))] for _ in range(12)]
    return layers, int(unit * draw.integers(250, 400))


def sums(layers: list[list[Setting]], chosen: list[int]) -> tuple[int, float]:
    taken = [layer[index] for layer, index in zip(layers, chosen, strict=True)]
    return sum(setting.size for setting in taken), sum(setting.error for setting in taken)


def optimum(layers: list[list[Setting]], budget: float) -> float:
    """By HiGHS: a variable for each setting, of which each layer has one."""
    settings = [setting for layer in layers for setting in layer]
    of_layer = np.array([[float(owner is layer) for owner in layers for _ in owner] for layer in layers])
    bytes_ = LinearConstraint(np.array([[setting.size for setting in settings]]), ub=budget)
    errors = np.array([setting.error for setting in settings])
    found = milp(errors, integrality=np.ones(len(settings)), bounds=(0, 1), constraints=[LinearConstraint(of_layer, 1, 1), bytes_])
    return float(found.fun)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_optimum(seed: int) -> None:
    layers, budget = problem(seed, unit=1 << 10)
    chosen = least_error(layers, budget + 500.5)
    assert chosen is not None
    size, error = sums(layers, chosen)
    assert size <= budget
    assert error == pytest.approx(optimum(layers, budget), rel=1e-6)


def test_where_bytes_are_rounded_the_budget_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, budget = problem(0, unit=1)
    layers = [[Setting(997 * setting.size + index, setting.error) for index, setting in enumerate(layer)] for layer in layers]
    monkeypatch.setattr(solve, "_MOST_CELLS", 64)
    chosen = least_error(layers, 997 * budget)
    assert chosen is not None
    size, error = sums(layers, chosen)
    assert size <= 997 * budget
    wasted = sum(max(s.size for s in layer) for layer in layers) / 64 * len(layers)
    assert error <= optimum(layers, 997 * budget - wasted) + 1e-9


def test_the_ends() -> None:
    layers = [[Setting(1, 1.0), Setting(2, 0.5)], [Setting(4, 0.0)], [Setting(3, 0.2), Setting(3, 0.2)]]
    assert least_error(layers, 7) is None
    assert least_error(layers, 8) == [0, 0, 0], "of equal ones the first"
    assert least_error(layers, 9) == [1, 0, 0]
    assert least_error(layers, 1e12) == [1, 0, 0]
    assert least_error([], 0) == []
