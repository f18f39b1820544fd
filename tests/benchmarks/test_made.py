"""The accuracy harness on a model of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.accuracy import child
from benchmarks.accuracy.command import main
from benchmarks.accuracy.comparison import ModelResults
from benchmarks.accuracy.made import is_function, make
from benchmarks.accuracy.models import load_reference
from benchmarks.accuracy.planning import Folders, Planner, Scope
from benchmarks.accuracy.results import read_all
from benchmarks.accuracy.settings import Settings, model_name
from dq_deploy.errors import UsageError
from dq_deploy.progress import silent

OWN = """
import torch
from diffusers import DDPMScheduler
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.condition = nn.Linear(4, 8)

    def forward(self, x, sigma, y):
        h = self.first(x) + self.condition(y)[:, :, None, None] + sigma[:, None, None, None] / 1000
        return self.last(torch.relu(self.middle(torch.relu(h))))


def make():
    torch.manual_seed(0)
    values = {"conditions": {"y": torch.zeros(3, 4)}, "held_out": {"y": torch.ones(2, 4)}}
    return {"model": Net(), "scheduler": DDPMScheduler(), "sample_shape": (1, 8, 8), **values}


def other():
    return {**make(), "conditions": {}, "held_out": {"y": torch.ones(2, 4)}, "extra": 1}


def rescheduled():
    return {**make(), "scheduler": DDPMScheduler(prediction_type="v_prediction")}


def fails():
    raise RuntimeError("no weights")
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("own") / "denoiser.py"
    file.write_text(OWN)
    return file


def test_what_is_a_function_and_how_it_is_called() -> None:
    assert [is_function(s) for s in ("a.py:make", "/b/a.py:make", "package.module:make", "builtin:unet", "owner/name", "folder")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert [model_name(s) for s in ("/b/denoiser.py:make", "zoo.py:adm", "package.adm:make", "builtin:fashion-mnist-unet")] == [
        "denoiser", "adm", "adm", "fashion-mnist-unet",
    ]  # fmt: skip


def test_calibrated_under_some_conditions_and_judged_under_others(own: Path) -> None:
    reference = load_reference(f"{own}:make")
    assert reference.input_names == ["x", "timestep", "y"]
    assert not reference.conditions(range(4))["y"].any()
    assert bool((reference.held_out(range(4))["y"] == 1).all())
    sample, timestep = torch.ones(2, 1, 8, 8), torch.tensor([1.0, 500.0])
    assert torch.equal(reference(sample, timestep, y=torch.ones(2, 4)), reference.source.model(sample, timestep, torch.ones(2, 4)))


def test_the_same_weights_sampled_otherwise_are_another_model(own: Path) -> None:
    first, again, other = (load_reference(f"{own}:{name}").source.sha256 for name in ("make", "make", "rescheduled"))
    assert first == again != other


def test_its_cells(own: Path, tmp_path: Path) -> None:
    settings = Settings(steps=3, calibration_samples=4, iterations=0, batch_size=4, max_float_share=0.5, grid_samples=4, snr_samples=2)
    folders = Folders(tmp_path / "results", tmp_path / "work", tmp_path)
    source = f"{own}:make"
    scope = Scope((source,), ("w8a8",), ("untrained", "onnxruntime"), (0,), settings, folders)
    for planned in Planner(scope, {source: load_reference(source)}).plan("grid"):
        child.run(planned.task, silent)
    results = ModelResults("denoiser", read_all(folders.results))
    rows = {name: results.row("w8a8", name) for name in ("untrained", "onnxruntime")}
    for row in rows.values():
        assert row is not None
        assert row.final is not None
        assert 12 < row.final.low <= row.final.value <= row.final.high < 80
    apart = results.final(rows["untrained"].result, rows["onnxruntime"].result)["final_difference"]  # type: ignore[union-attr]
    assert apart.value == pytest.approx(rows["untrained"].final.value - rows["onnxruntime"].final.value)  # type: ignore[union-attr]
    assert apart.low <= apart.value <= apart.high


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "there is no function 'nothing' in"),
        ("fails", "failed: RuntimeError: no weights"),
        ("other", "'extra' is not known; 'conditions' and 'held_out' have other names: none and y"),
        ("Net", "returns a Net"),
    ],
)
def test_what_is_no_source(own: Path, function: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(f"{own}:{function}")


def test_the_command_says_what_is_wrong_with_a_source(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["--source", f"{tmp_path / 'none.py'}:make", "--dry-run", "--work", str(tmp_path)])
    assert run.exit_code == 2
    assert "no such file" in run.output
