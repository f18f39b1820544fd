"""The study of attention in one kernel: its page is what is recorded, the graphs are what they say, and the defaults are fused."""

from __future__ import annotations

import onnx
import pytest

from benchmarks.engines.attention.conditions import CASES, _Writer
from benchmarks.engines.attention.report import PAGE, load_conditions, load_networks, page


def test_the_page_is_what_is_recorded() -> None:
    assert page(load_conditions(), load_networks()) == PAGE.read_text()


@pytest.mark.parametrize("name", CASES)
def test_every_graph_is_valid_and_has_one_attention(name: str) -> None:
    model = _Writer(CASES[name]).model()
    onnx.checker.check_model(model, full_check=True)
    assert sum(node.op_type == "Softmax" for node in model.graph.node) == 1


def test_every_attention_of_a_default_export_is_one_kernel() -> None:
    built = [engine for network in load_networks().values() for engine in network.engines["auto"].values()]
    assert built
    assert all(engine.fused == engine.attentions > 0 and engine.as_planned == engine.planned for engine in built)


def test_the_conditions_are_those_that_the_exports_are_padded_by() -> None:
    found = {name: set(outcome.fused.values()) for name, outcome in load_conditions().items()}
    assert {name: found[f"heads of {name}"] for name in (4, 8, 16, 256, 264)} == {
        4: {False},
        8: {False},
        16: {True},
        256: {True},
        264: {False},
    }
    padded = [name for name in found if "padded" in name]
    assert padded
    assert all(found[name] == {True} for name in padded)
    assert found["fp32"] == found["values of 32 channels"] == found["channels in front, one head"] == {False}
