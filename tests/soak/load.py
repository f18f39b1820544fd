"""The drop-in runner under eight threads, mixed batch sizes and mixed timesteps: the results of serial runs, in flat memory."""

from __future__ import annotations

import os
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.dropin import Runtime, load
from dq_deploy.engines.loading.engine_files import open_runnable

THREADS = 8
BATCHES = (1, 2, 3, 5, 8)
TOLERANCE = 1e-5  # of the largest output; OpenVINO may take other kernels for another batch of the moment
Inputs = dict[str, Any]


@dataclass
class Loaded:
    """Runs that were compared, the largest difference (relative to the largest output), resident memory in MB early and late."""

    runtime: str
    seconds: float = 0.0
    runs: int = 0
    largest_difference: float = 0.0
    memory_mb: tuple[float, float] = (0.0, 0.0)
    failures: list[str] = field(default_factory=list)


def under_load(bundle: Artifact | Path, runtime: Runtime, seconds: float, seed: int = 0) -> Loaded:
    """Run for so long; every result is compared with that of the same inputs before, alone: equal in bits in ONNX Runtime."""
    import torch

    model = load(bundle, runtime=runtime, threads=1)
    shape = open_runnable(bundle).manifest.details["sample_shape"]
    noise = np.random.default_rng(seed)
    known = []
    for batch in BATCHES:
        for mixed in (False, True):
            timestep = noise.choice([0.0, 100.0, 250.0, 400.0, 600.0, 750.0, 999.0], size=batch if mixed else 1).astype(np.float32)
            inputs = (torch.from_numpy(noise.normal(size=(batch, *shape)).astype(np.float32)), torch.from_numpy(timestep))
            known.append((inputs, model(*inputs).sample.numpy().copy()))
    result, lock, ends = Loaded(runtime), threading.Lock(), time.monotonic() + seconds

    def work(number: int) -> None:
        chance = random.Random(f"{seed}-{number}")
        while time.monotonic() < ends:
            inputs, expected = chance.choice(known)
            try:
                got = model(*inputs).sample.numpy()
                difference = float(np.abs(got - expected).max() / np.abs(expected).max())
            except Exception as error:  # noqa: BLE001  every kind is a finding
                with lock:
                    result.failures.append(f"{type(error).__name__}: {error}"[:500])
                return
            with lock:
                result.runs += 1
                result.largest_difference = max(result.largest_difference, float("inf") if np.isnan(difference) else difference)

    started = time.monotonic()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 3)  # every thread has run every shape by now
    early = _resident_mb()
    for thread in threads:
        thread.join()
    result.memory_mb = (round(early, 1), round(_resident_mb(), 1))
    result.seconds = time.monotonic() - started
    allowed = 0.0 if runtime == "onnxruntime" else TOLERANCE
    if result.largest_difference > allowed:
        result.failures.append(f"results differ from the serial runs' by {result.largest_difference:.1e} (allowed {allowed:g})")
    if result.memory_mb[1] > result.memory_mb[0] * 1.1 + 20:
        result.failures.append(f"memory grows: {result.memory_mb[0]} MB after a third of the time, {result.memory_mb[1]} MB at its end")
    return result


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
