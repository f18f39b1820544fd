"""Everything that is timed, made once: our checkpoint and bundles, their twin with static scales, and the outside tools' models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import dq_deploy
from benchmarks.accuracy.peers import FLOAT_ONNX, NNCF_XML, ORT_ONNX, quantize_nncf, quantize_onnxruntime
from benchmarks.scale.static_twin import write_static_twin
from dq_deploy.progress import Progress
from dq_deploy.quantization import Checkpoint, load_checkpoint

from .subjects import Subject

HELD_OUT = 2
"""Trajectories of the checkpoint's reference that nobody is calibrated on: the last ones."""
_CALIBRATION_SEEDS = 4
# Speed depends on shapes, bits and which tables there are, not on the values: nothing is dilated or trained.
_CHEAP: dict[str, Any] = {
    "iterations": 0,
    "dilation": "none",
    "calibration_samples": _CALIBRATION_SEEDS,
    "reference_samples": _CALIBRATION_SEEDS + HELD_OUT,
    "batch_size": 2,
    "steps": 10,
    "max_float_share": 0.05,
}


@dataclass(frozen=True)
class Made:
    """Folders of the artefacts and files of the peers, below one work folder."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """W8A8."""
        return self.folder / "checkpoint"

    def bundle(self, name: str) -> Path:
        """``tensorrt``, ``onnxruntime``, ``float``, ``static`` (one scale a layer), or ``narrow``: W6A6, where the others are W8A8."""
        return self.folder / name

    @property
    def float_onnx(self) -> Path:
        """The float model's graph."""
        return self.bundle("float") / "model.onnx"

    @property
    def onnxruntime_static(self) -> Path:
        """ONNX Runtime's ``quantize_static``."""
        return self.folder / "peers" / ORT_ONNX

    @property
    def nncf(self) -> Path:
        """NNCF's ``quantize``."""
        return self.folder / "peers" / NNCF_XML


def prepare(subject: Subject, folder: Path, progress: Progress) -> Made:
    """Make what is not there yet."""
    made = Made(folder)
    if not made.checkpoint.exists():
        dq_deploy.quantize(subject.source(folder), made.checkpoint, preset="w8a8", progress=progress, **_CHEAP)
    for name, options in {
        "tensorrt": {"target": "qdq", "dtype": "fp32"},
        "onnxruntime": {"target": "onnxruntime"},
        "float": {"target": "onnxruntime", "float": True},
    }.items():
        if not made.bundle(name).exists():
            dq_deploy.export(made.checkpoint, made.bundle(name), progress=progress, **options)  # type: ignore[arg-type]
    if not made.bundle("static").exists():
        write_static_twin(made.bundle("tensorrt"), made.bundle("static"))
    if not made.bundle("narrow").exists():
        _prepare_narrow(subject, made, progress)
    _prepare_peers(subject, made)
    return made


def _prepare_narrow(subject: Subject, made: Made, progress: Progress) -> None:
    """Weights of 6 bits: INT8 kernels are exact then even where they saturate with 8."""
    path = made.folder / "checkpoint-narrow"
    if not path.exists():
        dq_deploy.quantize(subject.source(made.folder), path, preset="w6a6", progress=progress, **_CHEAP)
    dq_deploy.export(path, made.bundle("narrow"), target="qdq", dtype="fp32", progress=progress)


def _prepare_peers(subject: Subject, made: Made) -> None:
    folder = made.folder / "peers"
    if made.nncf.exists() and made.onnxruntime_static.exists():
        return
    folder.mkdir(exist_ok=True)
    # One file: quantize_static's preprocessing loses sight of weights beside the graph.
    onnx.save(onnx.load(made.float_onnx), folder / FLOAT_ONNX)
    checkpoint = load_checkpoint(made.checkpoint)
    names = checkpoint.details.inputs
    quantize_onnxruntime(folder, names, _calibration(checkpoint))
    quantize_nncf(folder, names, _calibration(checkpoint), transformer=subject.transformer)


def _calibration(checkpoint: Checkpoint) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """As many trajectories of the same timesteps as our own calibration saw, one sample at a time; their seeds are others than its."""
    reference = checkpoint.reference()
    names = checkpoint.details.inputs
    for timestep, samples in zip(reference.timesteps, reference.samples, strict=True):
        for seed in range(_CALIBRATION_SEEDS):
            values = {name: value[seed : seed + 1].numpy() for name, value in reference.conditions.items()}
            values |= {names[0]: samples[seed : seed + 1].numpy(), "timestep": np.full(1, float(timestep), np.float32)}
            yield {name: values[name] for name in names}
