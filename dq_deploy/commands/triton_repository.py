"""``dq-deploy triton-repository``: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Output
from .options import PATH, common, force_option, output_folder

if TYPE_CHECKING:
    from ..artifacts import Artifact
    from ..artifacts.details import RepositoryDetails


@click.command("triton-repository", short_help="Write a model repository for Triton.")
@click.argument("path", type=PATH)
@output_folder("model repository")
@click.option("--name", help="Name of the model.  [default: PATH's folder name]")
@click.option("--max-batch-size", type=int, help="Samples in a batch.  [default: the engine's largest batch; 8 for a bundle]")
@click.option("--queue-delay-us", type=int, help="Microseconds that a request may wait for others to share its batch.  [default: 2000]")
@click.option("--instances", default=1, show_default=True, help="Copies of the model that run side by side.")
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True, help="Where they run.")
@force_option
@common
def triton_repository(path: Path, destination: Path, force: bool, output: Output, **options: Any) -> None:
    """Write PATH (a bundle, or an engine of TensorRT or OpenVINO) as a model repository of the Triton Inference Server.

    Requests at different denoising steps share a batch where each sample has its own timestep: in every engine, and in bundles of target
    qdq. A bundle of target onnxruntime has one timestep for a batch, so Triton does not put its requests together.
    """
    from ..engines.triton import triton_repository as write_repository

    show_triton(write_repository(path, destination, force=force, **options), output)


def show_triton(repository: Artifact[RepositoryDetails], output: Output) -> None:
    """What Triton will make of the repository."""
    from ..engines.descriptors.registry import REFERENCE

    details = repository.details
    rows = [
        ("model", details.name),
        ("backend", details.backend),
        ("largest batch", details.max_batch_size or "one request at a time"),
        ("requests share a batch", "yes, at any timesteps" if details.dynamic_batching else "no: one timestep for a whole batch"),
        ("instances on", details.kind),
    ]
    output.table(str(repository.path), ("", ""), rows)
    if REFERENCE.triton and details.backend == REFERENCE.triton.backend:
        output.note(
            "on an x86 CPU without VNNI Triton's ONNX Runtime sums INT8 products in 16 bits, which saturate: prefer an engine there"
        )
    output.data({"repository": repository.path, "manifest": repository.manifest.model_dump()})
