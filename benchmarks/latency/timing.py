"""All contenders of one model, interleaved in one run; and pictures through the pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import dq_deploy
from dq_deploy.artifacts import open_artifact
from dq_deploy.engines.bench import Contender, bench, contenders_from
from dq_deploy.engines.bench.statistics import paired_ratio
from dq_deploy.engines.loading.choice import best_runtime
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.engines.openvino.int8_kernels import int8_saturates
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.progress import Progress
from dq_deploy.quantization import load_checkpoint

from .preparing import Made
from .runners import PlainOnnxRuntime, PlainOpenVino, TorchRunner
from .subjects import Subject

BASELINE = "ONNX Runtime, float"
_PAIRS = (
    ("ours on OpenVINO", "ours on OpenVINO, static scales"),
    ("ours on OpenVINO, saturating INT8", "ours on OpenVINO, saturating INT8, static scales"),
)
PICTURE_STEPS, PICTURES, PICTURE_ROUNDS = 20, 8, 3


def contenders(subject: Subject, made: Made, threads: int, *, compiled: bool) -> list[Contender]:
    """The baseline first; what begins with "ours" is ours."""
    (template,) = contenders_from([made.bundle("tensorrt")], engines=["onnxruntime"], threads=threads)
    names = load_checkpoint(made.checkpoint).details.inputs
    makers: dict[str, Callable[[], Any]] = {
        BASELINE: lambda: PlainOnnxRuntime(made.float_onnx, threads=threads),
        "PyTorch eager": lambda: TorchRunner(subject.module(made.folder), names, compiled=False, threads=threads),
        **({"torch.compile": lambda: TorchRunner(subject.module(made.folder), names, compiled=True, threads=threads)} if compiled else {}),
        "ONNX Runtime, quantize_static": lambda: PlainOnnxRuntime(made.onnxruntime_static, threads=threads),
        "OpenVINO, float": lambda: PlainOpenVino(made.float_onnx, threads=threads),
        "OpenVINO, NNCF static INT8": lambda: PlainOpenVino(made.nncf, threads=threads),
        "ours on ONNX Runtime": lambda: OnnxRuntimeRunner(made.bundle("onnxruntime"), threads=threads),
        "ours on OpenVINO": lambda: OpenVinoRunner(made.bundle("tensorrt"), threads=threads),
        "ours on OpenVINO, static scales": lambda: OpenVinoRunner(made.bundle("static"), threads=threads),
        "ours on OpenVINO, W6A6": lambda: OpenVinoRunner(made.bundle("narrow"), threads=threads),
    }
    if int8_saturates():
        makers["ours on OpenVINO, saturating INT8"] = lambda: OpenVinoRunner(made.bundle("tensorrt"), threads=threads, integer=True)
        makers["ours on OpenVINO, saturating INT8, static scales"] = lambda: OpenVinoRunner(
            made.bundle("static"), threads=threads, integer=True
        )
    return [Contender(name=name, runner=make(), inputs=template.inputs) for name, make in makers.items()]


def static_pairs(everyone: Sequence[Contender], *, batches: list[int], runs: int, progress: Progress) -> list[dict[str, Any]]:
    """Per-timestep scales against static ones in the same graph on the same kernels, each pair alone and with more rounds."""
    by_name = {contender.name: contender for contender in everyone}
    found = []
    for ours, static in _PAIRS:
        if ours in by_name:
            result = bench([by_name[static], by_name[ours]], batches=batches, runs=runs, progress=progress)
            kernels = "INT8 kernels" if by_name[ours].runner.details["integer"] else "in float"
            found += [
                {"kernels": kernels, "batch": row.batch, "value": row.ratio, "low": row.ratio_low, "high": row.ratio_high}
                for row in result.rows
                if row.contender == ours
            ]
    return found


def pictures(subject: Subject, made: Made, threads: int, progress: Progress) -> dict[str, Any]:
    """Pictures per second at T = 20 through the diffusers pipeline, eager PyTorch against the drop-in, in turns."""
    from diffusers import DDIMPipeline

    from dq_deploy.quantization.calibration.choice import ddim_scheduler
    from dq_deploy.sources import load_source

    torch.set_num_threads(threads)
    source = load_source(subject.source(made.folder))
    bundles = {name: made.bundle(name) for name in ("onnxruntime", "tensorrt", "narrow")}
    models = {"PyTorch eager": source.model.eval()}
    models |= {f"ours, {name} bundle": dq_deploy.load(path, threads=threads) for name, path in bundles.items()}
    pipes: dict[str, Any] = {name: DDIMPipeline(unet=model, scheduler=ddim_scheduler(source.scheduler)) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in pipes}
    with progress("pictures", (PICTURE_ROUNDS + 1) * len(pipes)) as advance:
        for round_ in range(PICTURE_ROUNDS + 1):  # the first warms up
            for name, pipe in pipes.items():
                pipe.set_progress_bar_config(disable=True)
                start = time.perf_counter()
                pipe(PICTURES, generator=torch.Generator().manual_seed(round_), num_inference_steps=PICTURE_STEPS, output_type="np")
                if round_:
                    times[name].append(time.perf_counter() - start)
                advance(1, name)
    eager = np.array(times["PyTorch eager"])
    return {
        "engines": {name: best_runtime(open_artifact(path, "bundle")) for name, path in bundles.items()},
        "rows": [
            {
                "name": name,
                "pictures_per_s": PICTURES / float(np.median(found)),
                "speed": 1 / paired_ratio(np.array(found), eager).value,
            }
            for name, found in times.items()
        ],
    }
