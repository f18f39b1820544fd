"""The child process that builds an OpenVINO engine: ``python -m dq_deploy.engines.openvino.child request.json``.

The engine is OpenVINO's own IR (``model.xml`` and ``model.bin``), bounded to the profile's shapes, and not a compiled blob: a blob fits
one version of OpenVINO on one kind of CPU and saves a compilation of seconds, while the IR is read by every later version on every CPU,
by OpenVINO's tools and by Triton. Weights stay as they are in the graph (``compress_to_fp16=False``): INT8 and INT4 codes, and the fp32
scales, which fp16 would spoil.

What is saved is then compiled for this CPU at the usual shapes, as a run will do it, and the kernels are read from the compiled model.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ...artifacts import sha256_file
from ...artifacts.reading import read_onnx
from ...artifacts.writing import sync
from ..build.options import BuildOptions
from ..build.request import BuildRequest, BuildResult, Shape, end_with_parent
from .descriptor import OPENVINO
from .graph import runtime_dump
from .int8_kernels import int8_serves
from .runner import compile_for_cpu, refusal

_CHUNK = 1 << 20


def main(request_path: str) -> None:
    """Build what the request file asks for. Raises ArtifactError or whatever OpenVINO raises: the parent reads the traceback."""
    end_with_parent()
    request = BuildRequest.model_validate_json(Path(request_path).read_bytes())
    openvino = OPENVINO.load()
    graph = read_onnx(Path(request.onnx)).graph
    # What the parent looks for to know that the graph, and not the installation, is to blame for a crash.
    sys.stdout.write(f"Parsing node: {request.onnx} [Model]\n")
    files = _convert(openvino, request)
    asked = BuildOptions(**request.options).integer
    integer = int8_serves(bool(request.about.get("int8_without_vnni"))) if asked is None else asked
    usual = {name: shape for name, (_, shape, _) in request.profiles[0].items()}
    dump = runtime_dump(compile_for_cpu(openvino, Path(request.plan), integer=integer, shapes=usual), graph)
    hashes = {str(file): sha256_file(file) for file in files}
    version = metadata.version(OPENVINO.distributions[0])
    BuildResult(sha256=hashes, version=version, compute_capability=None, dump=dump, integer=integer).write(request.result)


def _convert(openvino: Any, request: BuildRequest) -> list[Path]:
    """Save the IR; its two files, on disk when this returns."""
    try:
        model = openvino.Core().read_model(request.onnx)
        model.reshape({name: _bounded(openvino, smallest, largest) for name, (smallest, _, largest) in request.profiles[0].items()})
    except RuntimeError as error:
        raise refusal(openvino, Path(request.onnx), error) from error
    files = [Path(request.plan), Path(request.plan).with_suffix(".bin")]
    try:
        openvino.save_model(model, request.plan, compress_to_fp16=False)
    except RuntimeError:  # "iostream error": the system knows why
        _reserve(files, sum(path.stat().st_size for path in Path(request.onnx).parent.iterdir()))
        raise
    for file in files:
        sync(file)
    return files


def _reserve(files: list[Path], size: int) -> None:
    """Take ``size`` bytes where the files are to be. Raises OSError where there is no room for them."""
    for file in files:
        file.unlink(missing_ok=True)
    with files[0].open("wb") as reserved:
        for _ in range(-(-size // _CHUNK)):
            reserved.write(bytes(_CHUNK))


def _bounded(openvino: Any, smallest: Shape, largest: Shape) -> Any:
    return openvino.PartialShape([openvino.Dimension(low, high) for low, high in zip(smallest, largest, strict=True)])


if __name__ == "__main__":
    main(sys.argv[1])
