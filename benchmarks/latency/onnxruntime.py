"""Bundles beside their float model in plain ONNX Runtime: ``python -m benchmarks.latency.onnxruntime FLOAT BUNDLE...``.

Sessions have the defaults that another program gets. What is compared is the thread's own processor time, in turn, one thread: other work
on the machine counts for little. A bundle's folder or an ONNX file.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    file = path / "model.onnx" if path.is_dir() else path
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _feeds(session: Any, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    random, feeds = np.random.default_rng(0), {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else batch for size in value.shape]
        whole = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}.get(value.type)
        feeds[value.name] = np.ones(shape, whole) if whole else random.standard_normal(shape).astype(np.float32)
        if value.name == "timestep":
            feeds[value.name] = np.full(shape, 400, feeds[value.name].dtype)
    return feeds


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--batches", default="1,4", show_default=True)
@click.option("--rounds", default=20, show_default=True)
def main(paths: tuple[Path, ...], batches: str, rounds: int) -> None:
    """Median of the rounds' ratios of the first's processor time to each one's: above 1 is faster than the first."""
    sessions = [_session(path) for path in paths]
    for batch in map(int, batches.split(",")):
        feeds = [_feeds(session, batch) for session in sessions]
        seconds = np.empty((rounds, len(sessions)))
        for number in range(-2, rounds):  # two to warm up
            for index, session in enumerate(sessions):
                start = time.thread_time()
                session.run(None, feeds[index])
                seconds[max(number, 0), index] = time.thread_time() - start
        ratios = np.median(seconds[:, :1] / seconds, axis=0)
        least = seconds.min(axis=0) * 1e3
        found = [f"{path} {ratio:.2f} ({ms:.1f} ms)" for path, ratio, ms in zip(paths, ratios, least, strict=True)]
        click.echo(f"batch {batch}: " + ", ".join(found))


if __name__ == "__main__":
    main()
