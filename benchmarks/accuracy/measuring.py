"""The figures of a cell, tier by tier, from its denoiser and what the float model drew from the same noises."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.accuracy.frechet import frechet_distance, frechet_replicates, gaussian
from benchmarks.accuracy.kernel_distance import kernel_distances
from benchmarks.accuracy.sample_metrics import feature_distance
from dq_deploy.artifacts.final_error import FinalError
from dq_deploy.decibels import psnr_db
from dq_deploy.errors import UsageError
from dq_deploy.progress import Progress
from dq_deploy.quantization.calibration.sampling_loop import SamplingLoop
from dq_deploy.quantization.calibration.trajectories import Answer, Model
from dq_deploy.quantization.final_error import final_error

from . import inception
from .drawing import Array, Denoiser, Drawing, Trace
from .extractors import REAL_SPLIT, Classifier, Extractor, features, real_features
from .models import DATASETS, Reference
from .results import GridFigures, HeadlineFigures, RivalFigures, rounded
from .settings import Settings
from .workspace import Workspace, load_array, save_array

SAMPLES, TRACE = "samples.npy", "trace.safetensors"
FINAL_SEEDS = 4
"""Each is sampled once for every step with only that step quantized, and once with all others."""
_KID_SUBSETS, _KID_SIZE = 100, 1000


@dataclass(frozen=True)
class Bench:
    """What all cells of a model share: the float model, how to draw, where things lie."""

    reference: Reference
    settings: Settings
    workspace: Workspace
    data: Path
    device: str = "cpu"

    @property
    def drawing(self) -> Drawing:
        """How every picture is drawn."""
        source = self.reference.source
        return Drawing(source.scheduler, source.sample_shape, self.settings.steps, self.reference.held_out, self.device)

    @property
    def float_denoiser(self) -> Denoiser:
        """The float model as every picture is drawn with it."""
        return self.reference.guided(self.reference)

    @property
    def float_folder(self) -> Path:
        """The float model's samples and trajectories."""
        return self.workspace.float_folder(self.settings)

    def pictures(self, denoiser: Denoiser, folder: Path, count: int, progress: Progress) -> Array:
        """The first ``count`` pictures [count, C, H, W] of a denoiser."""
        return self.reference.pictures(self.samples(denoiser, folder, count, progress))

    def samples(self, denoiser: Denoiser, folder: Path, count: int, progress: Progress) -> Array:
        """The first ``count`` samples [count, ...] of a denoiser; those drawn before are kept in its folder."""
        drawn = load_array(folder / SAMPLES)
        have = 0 if drawn is None else len(drawn)
        if have < count:
            with progress("pictures", count - have) as advance:
                more = self.drawing.samples(denoiser, range(have, count), advance)
            drawn = more if drawn is None else np.concatenate([drawn, more])
            save_array(folder / SAMPLES, drawn)
        assert drawn is not None
        return drawn[:count]

    def classifier(self) -> Classifier | None:
        """The small classifier of the model's data, None for data that has none."""
        dataset = DATASETS.get(self.reference.source.reference)
        return Classifier(dataset) if dataset else None

    def real(self, extractor: Extractor, size: int, progress: Progress) -> Array:
        """Features of the real pictures, of this height and width. Raises UsageError for a model whose data the harness does not know."""
        dataset = DATASETS.get(self.reference.source.reference)
        if dataset is None:
            raise UsageError(f"what {self.reference.source.reference} was trained on is not known here", "measure its grid tier only")
        return real_features(extractor, dataset, self.data, size, self.workspace.shared, progress)

    def recognised(self, pictures: Array) -> list[int] | None:
        """Whether the classifier sees in each picture [n, C, H, W] what its prompt asks for, 0 or 1; None without prompts."""
        asked, classifier = self.reference.classes_asked(len(pictures)), self.classifier()
        return None if asked is None or classifier is None else (classifier.classes(pictures) == asked.numpy()).astype(int).tolist()


def measure_float(bench: Bench, progress: Progress) -> GridFigures:
    """Draw the float model's samples and keep a few of its trajectories, for all methods to be compared with."""
    started = time.perf_counter()
    settings = bench.settings
    samples = bench.samples(bench.float_denoiser, bench.float_folder, settings.grid_samples, progress)
    trace = bench.drawing.trace(bench.float_denoiser, range(settings.snr_samples))
    _save_trace(bench.float_folder / TRACE, trace)
    power = [_squares(output) for output in trace.outputs]
    return GridFigures(
        samples=settings.grid_samples, wall_s=_since(started), timesteps=trace.timesteps, power=rounded(power, 5),
        final_power=rounded(_squares(torch.from_numpy(samples)), 5), recognised=bench.recognised(bench.reference.pictures(samples)),
    )  # fmt: skip


def measure_grid(bench: Bench, denoiser: Denoiser, folder: Path, progress: Progress) -> GridFigures:
    """Paired metrics against the float model's pictures and trajectories."""
    started = time.perf_counter()
    count = bench.settings.grid_samples
    floats = _float_samples(bench, count)
    trace = _load_trace(bench.float_folder / TRACE)
    samples = bench.samples(denoiser, folder, count, progress)
    expected, pictures = bench.reference.pictures(floats), bench.reference.pictures(samples)
    extractor = bench.classifier()
    distance = None if extractor is None else feature_distance(extractor(expected), extractor(pictures))
    return GridFigures(
        samples=count,
        wall_s=_since(started),
        psnr_db=rounded(psnr_db(expected, pictures), 5),
        extractor=extractor.name if extractor else None,
        feature_distance=None if distance is None else rounded(distance, 4),
        recognised=bench.recognised(pictures),
        timesteps=trace.timesteps,
        error=rounded(output_errors(bench, denoiser, trace), 5),
        final_error=rounded(_squares(torch.from_numpy(samples - floats)), 5),
        cost_of_steps=cost_of_steps(bench, denoiser, trace.timesteps, progress),
    )


@torch.inference_mode()
def cost_of_steps(bench: Bench, denoiser: Denoiser, timesteps: list[float], progress: Progress) -> FinalError:
    """What each step's error costs the final sample, of the first pictures' noises."""
    drawing, seeds = bench.drawing, range(bench.drawing.first_seed, bench.drawing.first_seed + FINAL_SEEDS)

    def placed(model: Denoiser) -> Model:
        def call(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
            given = {name: value.to(bench.device) for name, value in conditions.items()}
            return model(sample.to(bench.device), timestep.to(bench.device), **given).cpu()

        return call

    loop = SamplingLoop(drawing.scheduler, drawing.steps, drawing.shape, bench.reference.held_out(range(FINAL_SEEDS)))

    def finals(answer: Answer, runs: int) -> torch.Tensor:
        return loop.final_samples(answer, seeds, runs=runs)

    return final_error(
        finals, placed(bench.float_denoiser), placed(denoiser), timesteps, seeds=FINAL_SEEDS, samples_per_run=FINAL_SEEDS,
        batch_size=drawing.batch, progress=progress,
    )  # fmt: skip


@torch.inference_mode()
def output_errors(bench: Bench, denoiser: Denoiser, trace: Trace) -> list[list[float]]:
    """Summed squares [T, n] of the denoiser's difference to the float output, on the float model's own trajectories."""
    found = []
    for timestep, samples, outputs in zip(trace.timesteps, trace.samples, trace.outputs, strict=True):
        parts = []
        for start in range(0, len(samples), bench.drawing.batch):
            part = range(start, min(start + bench.drawing.batch, len(samples)))
            conditions = {name: value.to(bench.device) for name, value in bench.reference.held_out(part).items()}
            sample = samples[part.start : part.stop].to(bench.device)
            output = denoiser(sample, torch.full((len(part),), timestep, device=bench.device), **conditions)
            parts.append(output.cpu() - outputs[part.start : part.stop])
        found.append(_squares(torch.cat(parts)))
    return found


def measure_rival(bench: Bench, denoiser: Denoiser, folder: Path, progress: Progress) -> RivalFigures:
    """Fréchet distance to real pictures by the small classifier's features."""
    started = time.perf_counter()
    count, extractor = bench.settings.rival_samples, bench.classifier()
    if extractor is None:
        raise UsageError(f"there is no classifier for the data of {bench.reference.source.reference}", "measure its grid tier only")
    pictures = bench.pictures(denoiser, folder, count, progress)
    real = gaussian(bench.real(extractor, pictures.shape[-1], progress))
    found = features(extractor, pictures, progress)
    return RivalFigures(
        samples=count,
        wall_s=_since(started),
        extractor=extractor.name,
        reference=f"{real.count} {REAL_SPLIT} pictures",
        frechet=round(frechet_distance(gaussian(found), real), 5),
        replicates=rounded(frechet_replicates(found, real, replicates=bench.settings.frechet_replicates), 5),
    )


def measure_headline(bench: Bench, denoiser: Denoiser, folder: Path, progress: Progress) -> HeadlineFigures:
    """Inception FID and KID."""
    started = time.perf_counter()
    count = bench.settings.headline_samples
    pictures = bench.pictures(denoiser, folder, count, progress)
    extractor = inception.Inception(inception.fetch(bench.workspace.shared), bench.device)
    found = features(extractor, pictures, progress)
    real = bench.real(extractor, pictures.shape[-1], progress)  # last: another cell may be at it
    fitted = gaussian(real)
    return HeadlineFigures(
        samples=count,
        wall_s=_since(started),
        extractor=extractor.name,
        reference=f"{len(real)} {REAL_SPLIT} pictures",
        fid=round(frechet_distance(gaussian(found), fitted), 4),
        fid_replicates=rounded(frechet_replicates(found, fitted, replicates=bench.settings.inception_replicates), 6),
        kid=rounded(kernel_distances(found, real, subsets=_KID_SUBSETS, size=_KID_SIZE), 5),
        kid_size=min(_KID_SIZE, count, len(real)),
    )


def _float_samples(bench: Bench, count: int) -> Array:
    samples = load_array(bench.float_folder / SAMPLES)
    if samples is None or len(samples) < count:
        raise UsageError(f"the float model has not drawn {count} pictures yet", "measure the cell 'float' first")
    return samples[:count]


def _save_trace(file: Path, trace: Trace) -> None:
    tensors = {"timesteps": torch.tensor(trace.timesteps), "samples": torch.stack(trace.samples), "outputs": torch.stack(trace.outputs)}
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)  # a transformer's outputs are permuted


def _load_trace(file: Path) -> Trace:
    tensors = load_file(file)
    return Trace(tensors["timesteps"].tolist(), list(tensors["samples"]), list(tensors["outputs"]))


def _squares(values: torch.Tensor) -> list[float]:
    squares: list[float] = values.double().pow(2).flatten(1).sum(dim=1).tolist()
    return squares


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 2)
