"""A whole pipeline with a bundle as its denoiser, in the layout that other tools load.

Text encoders, tokenizers and the VAE are what the tool's own exporter makes of them; the denoiser's graph is the bundle's, behind the
inputs of the one that the exporter made (interface.py).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...artifacts import Artifact, Manifest, check_output, create_artifact, open_artifact
from ...artifacts.details import BundleDetails, PipelineFolderDetails
from ...artifacts.origin import places
from ...errors import ArtifactError, UsageError
from . import onnx_graph, openvino_graph
from .exported import Exported, export_pipeline, open_exported
from .tools import Tool, tool_named

_WRITERS = {"onnx": onnx_graph.write, "openvino": openvino_graph.write}


def pipeline_folder(
    bundle: str | Path | Artifact[BundleDetails],
    output: str | Path,
    tool: str,
    *,
    pipeline: str | Path | None = None,
    exported: str | Path | None = None,
    optimum_cli: str = "optimum-cli",
    batch: int | None = None,
    force: bool = False,
) -> Artifact[PipelineFolderDetails]:
    """Write a pipeline's folder for ``tool``: "optimum-onnx", "optimum-intel" or "openvino-genai".

    ``exported`` is the pipeline as the tool's exporter wrote it. Without it, ``optimum_cli`` (a command line, of any environment) exports
    ``pipeline``, the folder of the float pipeline; by default the one that the bundle was quantized from. ``batch`` fixes the samples of a
    call of the denoiser, twice the images with guidance, for which OpenVINO has faster kernels.

    Raises UsageError (options, an existing output), ArtifactError (no bundle, a pipeline that is not the bundle's, an exporter that fails)
    and EnvironmentProblem (the exporter or OpenVINO is not installed).
    """
    wanted = tool_named(tool)
    if batch is not None and batch < 1:
        raise UsageError(f"batch is {batch}, and at least 1 is needed")
    if pipeline is not None and exported is not None:
        raise UsageError("give the pipeline, to have it exported, or what was exported of it, not both")
    source = bundle if isinstance(bundle, Artifact) else open_artifact(bundle, "bundle")
    check_output(Path(output), force=force, source=source.path)
    _check_target(source, wanted)
    with (
        _exported(source, wanted, pipeline, exported, optimum_cli) as found,
        create_artifact(output, _manifest(source, wanted, found, batch), force=force) as folder,
    ):
        _copy_others(found, wanted, folder)
        replaced, file = found.path / found.component / wanted.file, folder / found.component / wanted.file
        _WRITERS[wanted.graph](source, replaced, file, types=wanted.types, batch=batch)
    return open_artifact(output, "pipeline-folder")


def _check_target(bundle: Artifact[BundleDetails], tool: Tool) -> None:
    if tool.graph == "openvino" and bundle.details.target != "qdq":
        raise ArtifactError(
            f"{bundle.path} has target {bundle.details.target}, whose scales OpenVINO would compute in float",
            f"export the checkpoint with --target qdq for {tool.name}",
        )


@contextmanager
def _exported(bundle: Artifact[BundleDetails], tool: Tool, pipeline: str | Path | None, exported: str | Path | None,
              optimum_cli: str) -> Iterator[Exported]:  # fmt: skip
    if exported is not None:
        yield open_exported(Path(exported), tool, bundle.details)
        return
    with tempfile.TemporaryDirectory(prefix="dq-deploy-exported-") as scratch:
        folder = Path(scratch) / "exported"
        export_pipeline(Path(pipeline) if pipeline is not None else _origin(bundle), folder, tool, optimum_cli)
        yield open_exported(folder, tool, bundle.details)


def _origin(bundle: Artifact[BundleDetails]) -> Path:
    source = bundle.details.source
    found = next((place for place in places(source, bundle.path) if place.is_dir()), None) if source else None
    if found is None:
        raise UsageError(
            f"{bundle.path} does not say which folder its pipeline lies in, or it is not there any more",
            "give --pipeline or --exported FOLDER",
        )
    return found


def _copy_others(found: Exported, tool: Tool, folder: Path) -> None:
    """Everything but the denoiser's graph; of its folder the configuration."""
    graph = Path(tool.file).stem
    for item in sorted(found.path.rglob("*")):
        inside = item.relative_to(found.path)
        if item.is_dir() or (inside.parts[0] == found.component and item.name.startswith(graph)):
            continue
        if inside.name == "manifest.json" and len(inside.parts) == 1:
            continue  # of a folder of ours that is taken as the exported one
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(item, folder / inside)


def _manifest(bundle: Artifact[BundleDetails], tool: Tool, found: Exported, batch: int | None) -> Manifest:
    return Manifest(
        kind="pipeline-folder",
        model=bundle.manifest.model,
        parent=bundle.as_parent,
        details={"tool": tool.name, "pipeline_class": found.pipeline_class, "component": found.component, "batch": batch},
    )
