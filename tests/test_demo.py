"""What the demo says of its run, in words."""

from __future__ import annotations

from dq_deploy.artifacts.details import KeptState
from dq_deploy.demo import _accuracy_facts
from dq_deploy.report.data import ReportData
from tests.report.conftest import report_data


def said(data: ReportData) -> str:
    return "\n".join(f"{fact.label}: {fact.value}" for fact in _accuracy_facts(data))


def test_no_gain_of_distillation_is_claimed_where_nothing_of_it_was_kept() -> None:
    kept = KeptState(kept="before distillation", final_snr_db={"before distillation": 24.5, "distilled": 24.1}, seeds=16)
    data = report_data("network")
    assert "dB by distillation" in said(data)
    undone = data.model_copy(update={"snr": [one for one in data.snr if one.role != "before"], "distillation": [], "kept_state": kept})
    assert "dB by distillation" not in said(undone)
    assert "what is kept of distillation: nothing: before distillation: final samples of 16 seeds have 24.5 dB" in said(undone)
