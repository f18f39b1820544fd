"""The child process that builds one engine: ``python -m dq_deploy.engines.tensorrt.child request.json``.

It exists because a builder can crash, hang or be killed for memory, during the build and after it. It prints the builder's verbose log to
standard output, writes the plan and then the result; what went wrong is read from the log by ``build/process.py``.

TensorRT and TensorRT-RTX take the same path through Polygraphy; only the configuration differs.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from ..build.options import BuildOptions
from ..build.request import BuildRequest, BuildResult, end_with_parent
from ..devices.cuda_driver import gpu_compute_capability
from .descriptor import TENSORRT_RTX
from .timing_cache import load_timing_cache, save_timing_cache


def main(request_path: str) -> None:
    """Build what the request file asks for. Raises whatever the builder raises: the parent reads the traceback."""
    end_with_parent()
    request = BuildRequest.model_validate_json(Path(request_path).read_bytes())
    # Read by polygraphy when it is first imported.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if request.backend == TENSORRT_RTX.name else "0"
    from polygraphy.mod.trt_importer import tensorrt_module_and_version_string

    trt: Any = __import__(tensorrt_module_and_version_string().partition(">")[0])
    # Before the long step: without a driver the enterprise builder could only fail later, and less clearly.
    capability = request.compute_capability or gpu_compute_capability()
    sha256 = _build(request, trt)
    BuildResult(sha256={request.plan: sha256}, version=str(trt.__version__), compute_capability=capability).write(request.result)


def _build(request: BuildRequest, trt: Any) -> str:
    """Parse, compile and save the plan, on disk when this returns; its sha256."""
    from polygraphy.backend.trt import engine_bytes_from_network, network_from_onnx_path
    from polygraphy.logger import G_LOGGER
    from polygraphy.util import save_file

    # EXTRA_VERBOSE is where polygraphy puts TensorRT's own VERBOSE, which holds the kernel list.
    G_LOGGER.module_severity = G_LOGGER.EXTRA_VERBOSE
    options = BuildOptions(**request.options)
    # TensorRT 10 must be asked for a strongly typed network; 11 and RTX know no other.
    builder, network, parser = network_from_onnx_path(request.onnx, strongly_typed=True, flags=_parser_flags(options, trt))
    config = _config(request, options, builder, network, trt)
    if options.timing_cache:
        load_timing_cache(config, options.timing_cache)
    plan = engine_bytes_from_network((builder, network, parser), config=config)
    if options.timing_cache:
        save_timing_cache(config, options.timing_cache)
    with Path(request.plan).open("wb") as stream:
        save_file(plan, stream)  # flushes and fsyncs
    return hashlib.sha256(plan).hexdigest()


def _parser_flags(options: BuildOptions, trt: Any) -> list[Any] | None:
    """Engines for other versions or GPUs take TensorRT's own normalization instead of a plugin."""
    needed = options.version_compatible or options.hardware_compatibility
    return [trt.OnnxParserFlag.NATIVE_INSTANCENORM] if needed else None


def _config(request: BuildRequest, options: BuildOptions, builder: Any, network: Any, trt: Any) -> Any:
    from polygraphy.backend.trt import Profile

    profiles = [Profile() for _ in request.profiles]
    for profile, shapes in zip(profiles, request.profiles, strict=True):
        for name, (smallest, usual, largest) in shapes.items():
            profile.add(name, min=smallest, opt=usual, max=largest)
    common = {"profiles": profiles, "profiling_verbosity": trt.ProfilingVerbosity.DETAILED, **builder_settings(options, trt)}
    if request.backend == TENSORRT_RTX.name:
        from polygraphy.backend.tensorrt_rtx import create_config_rtx

        return create_config_rtx(builder, network, compute_capabilities=[request.compute_capability], use_gpu=False, **common)
    from polygraphy.backend.trt import create_config

    return create_config(builder, network, **common)


def builder_settings(options: BuildOptions, trt: Any) -> dict[str, Any]:
    """The options in Polygraphy's terms; only those that were requested."""
    settings: dict[str, Any] = {}
    if options.optimization_level is not None:
        settings["builder_optimization_level"] = options.optimization_level
    if options.workspace_mb is not None:
        settings["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.workspace_mb << 20}
    if options.weight_streaming:
        settings["weight_streaming"] = True
    if options.hardware_compatibility is not None:
        level = options.hardware_compatibility.replace("-", "_").upper()
        settings["hardware_compatibility_level"] = getattr(trt.HardwareCompatibilityLevel, level)
    if options.version_compatible:
        # The lean runtime inside of a plan is code for the host, which the runner does not let in.
        settings |= {"version_compatible": True, "exclude_lean_runtime": True}
    return settings


if __name__ == "__main__":
    main(sys.argv[1])
