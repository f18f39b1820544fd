"""A bundle or an engine as a model repository of NVIDIA's Triton Inference Server.

DIR/manifest.json                 ours, of no interest to Triton, which looks at folders only
DIR/<name>/config.pbtxt
DIR/<name>/1/model.onnx           a bundle, with model.onnx.data beside it where the weights are external
DIR/<name>/1/model.xml, .bin      an engine of OpenVINO
DIR/<name>/1/model.plan           an engine of TensorRT; model.sm89.plan and so on where there are several
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...artifacts import Artifact, Manifest, check_output, create_artifact, is_kind, open_artifact
from ...artifacts.details import EngineDetails, GraphDetails, GraphOutput, RepositoryDetails
from ...artifacts.reading import read_onnx
from ...artifacts.writing import write_text
from ...errors import ArtifactError, UsageError
from ..build.plan import output_spec
from ..descriptors.descriptor import Triton
from ..descriptors.registry import REFERENCE, builders
from ..loading.engine_files import builder_of, open_graph
from ..running.runner import MODEL_FILE
from .config import BATCH, Kind, TritonConfig, TritonTensor, check_name, shares_batches, tensors_of, warmup_of

Device = Literal["auto", "cpu", "gpu"]
# A request waits so long for others to share its batch: little beside a denoising step.
DEFAULT_QUEUE_DELAY_US = 2000
DEFAULT_MAX_BATCH = 8
_KINDS: dict[str, Kind] = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}


@dataclass(frozen=True)
class _Asked:
    name: str
    max_batch_size: int | None
    queue_delay_us: int | None
    instances: int
    device: Device


def triton_repository(
    source: str | Path | Artifact[GraphDetails],
    output: str | Path,
    *,
    name: str | None = None,
    max_batch_size: int | None = None,
    queue_delay_us: int | None = None,
    instances: int = 1,
    device: Device = "auto",
    force: bool = False,
) -> Artifact[RepositoryDetails]:
    """Write a model repository with one model, version 1.

    ``max_batch_size``: of an engine, its largest batch; of a bundle of target ``qdq`` 8 by default. ``queue_delay_us``: how long a
    request may wait for others. ``instances`` run side by side on ``device`` ("auto": the GPU for TensorRT, the CPU for OpenVINO, Triton's
    choice for ONNX Runtime). A bundle runs in the reference's backend, ONNX Runtime, an engine in that of its builder.

    Raises UsageError (options, an existing output) and ArtifactError (neither bundle nor engine, a damaged one, an engine of TensorRT-RTX,
    for which Triton has no backend).
    """
    artifact = open_graph(source)
    check_output(Path(output), force=force, source=artifact.path)
    _check_numbers(instances, max_batch_size, queue_delay_us)
    asked = _Asked(check_name(name or artifact.path.resolve().name), max_batch_size, queue_delay_us, instances, device)
    config, files = _engine_model(artifact, asked) if is_kind(artifact, EngineDetails) else _bundle_model(artifact, asked)
    with create_artifact(output, _manifest(artifact, config), force=force) as folder:
        version = folder / config.name / "1"
        version.mkdir(parents=True)
        write_text(version.parent / "config.pbtxt", config.text())
        for original, copied in files.items():
            shutil.copyfile(artifact.file(original), version / copied)
    return open_artifact(output, "triton-repository")


def _check_numbers(instances: int, max_batch_size: int | None, queue_delay_us: int | None) -> None:
    counts = {"instances": instances, "max_batch_size": 1 if max_batch_size is None else max_batch_size}
    problems = [f"{what} is {value}, and at least 1 is needed" for what, value in counts.items() if value < 1]
    if queue_delay_us is not None and queue_delay_us < 0:
        problems.append(f"queue_delay_us is {queue_delay_us}, and cannot be negative")
    if problems:
        raise UsageError("; ".join(problems))


def _bundle_model(bundle: Artifact[GraphDetails], asked: _Asked) -> tuple[TritonConfig, dict[str, str]]:
    batched = shares_batches(bundle.details.inputs)
    if not batched and (asked.max_batch_size or asked.queue_delay_us is not None):
        raise UsageError(
            f"{bundle.path} takes one timestep for a whole batch, so Triton cannot put requests together, and batching has no options",
            "leave them out, or export it with --target qdq, where each sample has its own timestep",
        )
    largest = asked.max_batch_size or DEFAULT_MAX_BATCH
    assert REFERENCE.triton is not None
    config = _config(
        bundle, asked, REFERENCE.triton, batched=batched, largest=largest, usual=largest,
        sizes={name: free.range[1] for name, free in bundle.details.free.items()},
    )  # fmt: skip
    return config, {file: file for file in bundle.manifest.files if file.startswith(MODEL_FILE)}


def _engine_model(engine: Artifact[EngineDetails], asked: _Asked) -> tuple[TritonConfig, dict[str, str]]:
    details = engine.details
    if details.profiles:
        raise ArtifactError(
            f"{engine.path} has {len(details.profiles)} profiles, and Triton takes an engine's first alone",
            "build an engine of one: with --batch, --height and --width, without --profile",
        )
    smallest, usual, largest = details.batch
    builder = builder_of(engine.path, details)
    triton = builder.triton
    if triton is None:
        others = " or ".join(name for name, other in builders().items() if other.triton)
        raise ArtifactError(
            f"{engine.path} is an engine of {builder.title}, for which Triton has no backend",
            f"give the bundle, or an engine built with --backend {others}",
        )
    if smallest > 1:
        raise ArtifactError(
            f"{engine.path} was built for batches from {smallest} on, and Triton must be able to run a single request",
            f"build it again with --batch 1,{usual},{largest}",
        )
    if (asked.max_batch_size or 1) > largest:
        raise UsageError(f"max_batch_size is {asked.max_batch_size}, and {engine.path} was built for at most {largest}")
    sizes = {name: usual_size for name, (_, usual_size, _) in details.sizes.items()}
    largest = asked.max_batch_size or largest
    config = _config(engine, asked, triton, batched=True, largest=largest, usual=min(usual, largest), sizes=sizes)
    if details.engines[0].compute_capability is None:  # the engine's file, and what stands beside it under the same name
        stem = f"{Path(details.engines[0].file).stem}."
        return config, {file: file for file in engine.manifest.files if file.startswith(stem)}
    return _by_capability(config, details, triton)


def _by_capability(config: TritonConfig, details: EngineDetails, triton: Triton) -> tuple[TritonConfig, dict[str, str]]:
    if len(details.engines) == 1:
        return config, {details.engines[0].file: triton.file}
    names = {entry.file: Path(entry.file).with_suffix(Path(triton.file).suffix).name for entry in details.engines}
    files_by_capability = {str(entry.compute_capability): names[entry.file] for entry in details.engines}
    return replace(config, files_by_capability=files_by_capability), names


def _config(
    artifact: Artifact[GraphDetails], asked: _Asked, triton: Triton, *, batched: bool, largest: int, usual: int, sizes: dict[str, int]
) -> TritonConfig:  # fmt: skip
    details = artifact.details
    free = {size for entry in details.inputs for size in entry.shape if isinstance(size, str)} - {BATCH} - sizes.keys()
    warmed = () if free else warmup_of(details.inputs, sizes, (1, largest) if batched else (1,), batched=batched)
    device = triton.device or "auto" if asked.device == "auto" else asked.device
    if triton.device not in (None, device):
        raise UsageError(f"an engine of {triton.backend} does not run on a {device.upper()}", "leave --device at auto")
    return TritonConfig(
        name=asked.name,
        backend=triton.backend,
        platform=triton.platform,
        max_batch_size=largest if batched else 0,
        inputs=tensors_of(details.inputs, batched=batched),
        outputs=(_output(artifact, batched=batched),),
        kind=_KINDS[device],
        instances=asked.instances,
        preferred=tuple(sorted({usual, largest})),
        queue_delay_us=DEFAULT_QUEUE_DELAY_US if asked.queue_delay_us is None else asked.queue_delay_us,
        warmup=warmed,
    )


def _output(artifact: Artifact[GraphDetails], *, batched: bool) -> TritonTensor:
    if is_kind(artifact, EngineDetails):
        spec = artifact.details.output_spec
    else:
        spec = GraphOutput(**output_spec(read_onnx(artifact.file(MODEL_FILE))))
    if spec is None:
        raise ArtifactError(f"{artifact.path}: the manifest does not say what shape the output has", "build the engine again")
    (tensor,) = tensors_of([spec], batched=batched)
    return tensor


def _manifest(artifact: Artifact, config: TritonConfig) -> Manifest:
    return Manifest(
        kind="triton-repository",
        model=artifact.manifest.model,
        parent=artifact.as_parent,
        details={
            "name": config.name,
            "backend": config.backend,
            "max_batch_size": config.max_batch_size,
            "dynamic_batching": config.max_batch_size > 0,
            "kind": config.kind,
        },
    )
