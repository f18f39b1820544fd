"""The accuracy harness on the built-in text pipeline: what it draws is what the pipeline draws, and its figures."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import numpy as np
import openvino
import pytest
import torch

from benchmarks.accuracy import child, prompted
from benchmarks.accuracy.comparison import ModelResults
from benchmarks.accuracy.drawing import PICTURE_SEED, Drawing
from benchmarks.accuracy.extractors import Classifier
from benchmarks.accuracy.features import load_classifier
from benchmarks.accuracy.models import Reference, load_reference
from benchmarks.accuracy.peers import export_float
from benchmarks.accuracy.planning import Folders, Planner, Scope
from benchmarks.accuracy.prompted import held_out_captions
from benchmarks.accuracy.report import write_report
from benchmarks.accuracy.results import CellResult, read_all
from benchmarks.accuracy.settings import Settings
from dq_deploy.progress import silent
from dq_deploy.quantization.calibration.choice import choose
from dq_deploy.sources import load_source
from tests.training.idx import write_labelled
from training.captions import NOUNS
from training.data import CLASSES

TEXT = "builtin:fashion-mnist-text"
SETTINGS = Settings(steps=2, calibration_samples=2, iterations=0, batch_size=4, max_float_share=0.5, grid_samples=4, snr_samples=2,
                    rival_samples=5, frechet_replicates=2)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _few_prompts() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompted, "HELD_OUT", 4)
        yield


@pytest.fixture(scope="module")
def reference() -> Reference:
    return load_reference(TEXT)


def test_nobody_is_calibrated_on_what_is_judged(reference: Reference) -> None:
    assert reference.prompted is not None
    captions, classes = held_out_captions(set(reference.prompted.prompts))
    assert not set(captions) & set(reference.prompted.prompts)
    for caption, label in zip(captions, classes.tolist(), strict=True):
        assert any(caption.split(", ")[0].endswith(noun.rpartition(" of ")[2]) for noun in NOUNS[label])
    assert held_out_captions(set(captions))[0][0] not in captions
    assert not torch.equal(reference.conditions(range(4))["encoder_hidden_states"], reference.held_out(range(4))["encoder_hidden_states"])


def test_it_draws_what_the_pipeline_draws(reference: Reference) -> None:
    assert reference.prompted is not None
    drawing = Drawing(reference.source.scheduler, reference.source.sample_shape, 3, reference.held_out)
    drawn = reference.pictures(drawing.samples(reference.guided(reference), range(3)))
    pipeline = reference.prompted.pipeline
    pipeline.scheduler = choose(reference.source.scheduler).scheduler
    captions, _ = held_out_captions(set(reference.prompted.prompts))
    noises = [torch.Generator().manual_seed(PICTURE_SEED + number) for number in range(3)]
    options = {"num_inference_steps": 3, "guidance_scale": reference.prompted.guidance_scale, "use_resolution_binning": False}
    expected = pipeline(captions[:3], generator=noises, clean_caption=False, output_type="np", **options).images
    assert np.abs(drawn.transpose(0, 2, 3, 1) - expected).max() < 1e-4
    unguided = reference.pictures(drawing.samples(reference, range(3)))
    assert np.abs(unguided - drawn).max() > 0.01


@pytest.mark.nightly
def test_outside_tools_get_a_graph_of_any_batch(reference: Reference, tmp_path: Path) -> None:
    export_float(reference, reference.source.sample_shape, tmp_path / "float.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "float.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    sample, timestep, conditions = torch.randn(3, 4, 8, 8), torch.tensor([1.0, 500.0, 900.0]), reference.conditions(range(3))
    with torch.no_grad():
        expected = reference(sample, timestep, **conditions)
    given = {name: value.numpy() for name, value in {**conditions, "hidden_states": sample, "timestep": timestep}.items()}
    assert np.abs(compiled(given)[0] - expected.numpy()).max() < 1e-3 * expected.abs().max()


@pytest.fixture(scope="module")
def measured(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> list[CellResult]:
    """All tiers but Inception."""
    root = tmp_path_factory.mktemp("text")
    (root / "data").mkdir()
    write_labelled(root / "data", train=2, test=6)
    folders = Folders(root / "results", root / "work", root / "data")
    scope = Scope((TEXT,), ("w8a8",), ("min-max",), (0,), SETTINGS, folders)
    for tier in ("grid", "rival"):
        plan = Planner(scope, {TEXT: reference}).plan(tier)  # type: ignore[arg-type]
        assert [p.task.cell.method for p in plan] == ["float", "min-max"]
        for planned in plan:
            child.run(planned.task, silent)
    return read_all(folders.results)


def test_figures_of_its_cells(measured: list[CellResult], reference: Reference) -> None:
    base, quantized = sorted(measured, key=lambda result: result.cell.method)
    for result in measured:
        assert result.grid is not None
        assert result.grid.recognised is not None
        assert len(result.grid.recognised) == SETTINGS.grid_samples
        assert result.rival is not None
        assert result.rival.samples == SETTINGS.rival_samples
    assert base.grid is not None
    assert quantized.grid is not None
    assert quantized.grid.psnr_db is not None
    assert 20 < mean(quantized.grid.psnr_db) < 100
    assert np.shape(quantized.grid.error) == np.shape(base.grid.power) == (SETTINGS.steps, SETTINGS.snr_samples)
    assert base.model_sha256 == reference.source.sha256 != load_source(TEXT).sha256


def test_what_the_classifier_recognises(reference: Reference) -> None:
    assert reference.classes_asked(6).tolist() == [0, 1, 2, 3, 0, 1]  # type: ignore[union-attr]
    classifier = Classifier("fashion-mnist")
    box = np.zeros((1, 1, 32, 32), np.float32)
    box[0, 0, 8:26, 4:28] = 0.6
    assert classifier.classes(box).tolist() == [CLASSES.index("Bag")]
    pictures = np.random.default_rng(0).integers(0, 256, (8, 1, 32, 32)).astype(np.float32) / 255
    with torch.no_grad():
        assert classifier.classes(pictures).tolist() == load_classifier()(torch.from_numpy(2 * pictures - 1)).argmax(1).tolist()


def test_its_table_has_what_was_measured_and_no_more(measured: list[CellResult], reference: Reference, tmp_path: Path) -> None:
    assert ModelResults("fashion-mnist-text", measured).prompted
    results = tmp_path / "results"
    for result in measured:
        file = result.cell.result_file(results)
        file.parent.mkdir(parents=True)
        file.write_text(result.model_dump_json())
    write_report(results, tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" |")[0] for line in table] == ["| ", "| float", "| W8A8, min-max, static"]
    assert "%" in table[1]
    assert "Missing cells" not in text
