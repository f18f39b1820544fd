"""The study of number formats in engines: the page is what is recorded, targets can be missed, and peaks are the documented ones."""

from __future__ import annotations

import pytest

from benchmarks.engines.attention.networks import Engine
from benchmarks.engines.formats.report import BATCH, PAGE, gpus, load, page, targets
from benchmarks.engines.formats.study import STUDIED, Built, capabilities


def engine(**changed: object) -> Engine:
    figures = {"kernels": 100, "planned": 10, "as_planned": 10, "attentions": 2, "fused": 2, "split": {}, "largest_tokens": 1024,
               "weights_bytes": 1_000_000, "activation_bytes": 1, "engine_bytes": 1, **changed}  # fmt: skip
    return Engine.model_validate(figures)


def built(form: str, macs: dict[str, int], **changed: object) -> Built:
    made = dict.fromkeys(capabilities(form), engine(**changed))
    return Built(network=STUDIED[0], form=form, version="1", engines=made, macs=dict.fromkeys(made, macs))


def found(**changed: object) -> dict[tuple[str, str], Built]:
    cells = [built("fp32", {"fp32": 1}, weights_bytes=4_000_000), built("fp16", {"fp16": 10**12}), built("fp8", {"fp8": 10**12}, **changed)]
    return {(STUDIED[0], cell.form): cell for cell in cells}


def test_the_page_is_what_is_recorded() -> None:
    assert page(load()) == PAGE.read_text()


@pytest.mark.parametrize(("changed", "target"), [
    ({"as_planned": 9}, "every layer as planned"),
    ({"weights_bytes": 1_100_000}, "weights at most 0.27 × FP32's"),
    ({"kernels": 106}, "kernels at most 1.05 × FP16's"),
    ({"split": {"a": "its heads are wide"}}, "every attention of 256 tokens or more is one kernel"),
])  # fmt: skip
def test_a_target_can_be_missed(changed: dict[str, object], target: str) -> None:
    assert all(met for _, _, met in targets(found()))
    missed = [(name, where) for name, where, met in targets(found(**changed)) if not met]
    assert {name for name, _ in missed} == {target}
    assert [where.split(" (")[0] for _, where in missed] == [f"{STUDIED[0]} fp8 on {capability}" for capability in ("8.9", "12.0")]
    assert ("its heads are wide" in page(found(**changed))) == ("split" in changed)


def test_short_attentions_need_not_be_one_kernel() -> None:
    assert all(met for _, _, met in targets(found(split={"a": "b"}, largest_tokens=64)))


# NVIDIA's specifications, dense tensor-core rates in T/s.
@pytest.mark.parametrize(("name", "fp16", "fp8"), [("RTX 4090", 330, 661), ("L40S", 362, 733), ("H100", 989, 1979), ("RTX 5090", 419, 838)])
def test_peaks_are_the_documented_ones(name: str, fp16: float, fp8: float) -> None:
    _, peaks = gpus()[name]
    assert peaks.operations["fp16"] == pytest.approx(fp16 * 1e12, rel=0.02)
    assert peaks.operations["fp8"] == pytest.approx(fp8 * 1e12, rel=0.02)


def test_an_estimate_is_products_over_the_peak() -> None:
    row = next(line for line in page(found()).splitlines() if line.startswith(f"| {STUDIED[0]} | fp8"))
    first = row.split(" | ")[2]
    assert first == f"{2e12 * BATCH / gpus()['RTX 4090'][1].operations['fp8'] * 1e6:.1f}, compute"
