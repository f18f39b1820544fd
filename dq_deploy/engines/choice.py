"""Which engine runs an artefact: the one it was built for, the one that was asked for, or the best of those that are here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from ..artifacts import Artifact
from ..artifacts.layer_bits import integer_activations, share_of_work
from ..errors import UsageError
from .engine_files import details_of
from .runner import GraphRunner, Runner

Runtime = Literal["auto", "onnxruntime", "openvino"]
# What can be asked for by name where engines are compared. "openvino-int8" takes OpenVINO's INT8 kernels even where they saturate; the last
# two before TensorRT's own are providers of ONNX Runtime.
Engine = Literal["onnxruntime", "openvino", "openvino-int8", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx"]
_PROVIDERS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}

_OWN_OPTIONS: dict[Literal["onnxruntime", "openvino"], set[str]] = {
    "onnxruntime": {"providers", "optimized"},
    "openvino": {"precision", "integer"},
}


def runner_on(artifact: Artifact, engine: Engine, *, threads: int | None = None) -> Runner:
    """The runner for a bundle or an engine on the engine of that name; raises as ``load`` does."""
    if engine in ("tensorrt", "tensorrt-rtx"):
        if artifact.manifest.kind != "engine":
            raise UsageError(
                f"{artifact.path} is a bundle, and {engine} runs engines",
                f"dq-deploy build-engine {artifact.path} -o ENGINE --backend {engine}",
            )
        return make_runner(artifact, cuda_graphs=True)
    if engine in _PROVIDERS:
        return make_runner(artifact, runtime="onnxruntime", threads=threads, providers=(_PROVIDERS[engine],))
    integer = {"integer": True} if engine == "openvino-int8" else {}
    return make_runner(artifact, runtime="openvino", threads=threads, **integer)


def file_runner(file: Path, engine: str, like: Mapping[str, Any], *, threads: int | None = None) -> GraphRunner:
    """An ONNX file (a part of a bundle's graph, say) on the engine that ran the bundle, with the settings in that runner's details."""
    if engine in _PROVIDERS:
        from .onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(file, threads=threads, providers=(_PROVIDERS[engine],))
    from .openvino import OpenVinoRunner

    return OpenVinoRunner(file, threads=threads, precision=like["precision"], integer=like["integer"])


def engines_of(artifact: Artifact, asked: Sequence[Engine] | None) -> Sequence[Engine]:
    """What a built engine runs on: what it was built for, and of what was asked for, those that are that. Raises UsageError for none."""
    backend = details_of(artifact.path, artifact.manifest).backend
    possible: tuple[Engine, ...] = ("openvino", "openvino-int8") if backend == "openvino" else (backend,)
    fitting = [engine for engine in asked or possible[:1] if engine in possible]
    if not fitting:
        raise UsageError(
            f"{artifact.path} is an engine of {backend}, and does not run on {', '.join(asked or ())}", f"add --engine {backend}"
        )
    return fitting


def make_runner(artifact: Artifact, *, runtime: Runtime = "auto", **options: Any) -> Runner:
    """The runner for a bundle or an engine; raises as ``load`` does."""
    if runtime not in get_args(Runtime):
        raise UsageError(f"unknown runtime '{runtime}'", "choose auto, onnxruntime or openvino")
    if artifact.manifest.kind == "engine":
        return _engine_runner(artifact, runtime, options)
    chosen = _chosen(artifact, options) if runtime == "auto" else runtime
    from .onnxruntime import OnnxRuntimeRunner

    if chosen == "onnxruntime":
        return OnnxRuntimeRunner(artifact, **options)
    from .openvino import OpenVinoRunner

    if runtime == "auto":
        shared = {name: value for name, value in options.items() if name not in _OWN_OPTIONS["openvino"]}
        options = {"otherwise": lambda: OnnxRuntimeRunner(artifact, **shared), **options}
    return OpenVinoRunner(artifact, **options)


def _chosen(bundle: Artifact, options: Mapping[str, Any]) -> Literal["onnxruntime", "openvino"]:
    """The runtime whose options were given, or else the best."""
    for runtime, own in _OWN_OPTIONS.items():
        if own & options.keys():
            return runtime
    return best_runtime(bundle)


def best_runtime(bundle: Artifact) -> Literal["onnxruntime", "openvino"]:
    """The faster of the installed engines for a bundle on a CPU; either computes what its integers mean.

    OpenVINO where it is installed, for graphs of target ``tensorrt`` whose products are integers, by half of the multiply-accumulates or
    more: with INT8 kernels where these are exact on this CPU, else in float (docs/engines.md has the measurements). ONNX Runtime for
    everything else: float graphs, weights alone, scales as graph values.
    """
    details = bundle.manifest.details
    products = [*details["layers"], *details["float_layers"]]
    integer = details.get("target") == "tensorrt" and share_of_work(products, integer_activations) >= 1 / 2
    return "openvino" if integer and find_spec("openvino") is not None else "onnxruntime"


def _engine_runner(engine: Artifact, runtime: Runtime, options: Mapping[str, Any]) -> Runner:
    backend = details_of(engine.path, engine.manifest).backend
    if runtime not in ("auto", backend):
        raise UsageError(
            f"{engine.path} is an engine of {backend}, and {runtime} runs bundles", "leave the runtime at auto, or give the bundle"
        )
    if backend == "openvino":
        from .openvino import OpenVinoRunner

        return OpenVinoRunner(engine, **options)
    from .tensorrt_runner import TensorRtRunner

    return TensorRtRunner(engine, **options)
