"""``dq-deploy pipeline-folder``: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Output
from ..engines.pipeline_folder.tools import TOOLS
from .options import PATH, common, force_option, output_folder

if TYPE_CHECKING:
    from ..artifacts import Artifact
    from ..artifacts.details import PipelineFolderDetails


@click.command("pipeline-folder", short_help="Write a whole pipeline for other tools.")
@click.argument("bundle", type=PATH)
@output_folder("folder")
@click.option("--for", "tool", type=click.Choice(list(TOOLS)), required=True, help="Tool that is to load it.")
@click.option("--pipeline", type=PATH, help="Folder of the float pipeline.  [default: the one that was quantized]")
@click.option("--exported", type=PATH, help="The pipeline as exported before.  [default: it is exported now]")
@click.option("--optimum-cli", default="optimum-cli", show_default=True, metavar="COMMAND", help="The exporter, in any environment.")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Samples of a call, 2 for an image with guidance.  [default: any]")
@force_option
@common
def pipeline_folder(bundle: Path, destination: Path, force: bool, output: Output, **options: Any) -> None:
    """Write a whole pipeline with BUNDLE as its denoiser, in the layout that other tools load.

    Text encoders, tokenizers and the VAE are exported by the tool's own optimum-cli, which wants other versions of transformers than this
    environment may have: name the one of its environment with --optimum-cli, or run it yourself and give --exported.

    \b
    optimum-onnx    ORTPipelineForText2Image, ONNX Runtime
    optimum-intel   OVPipelineForText2Image, OpenVINO
    openvino-genai  Text2ImagePipeline, OpenVINO, for Python, C++ and JavaScript

    With --batch OpenVINO gets the graph rewritten for its faster kernels, and draws that many samples at a time.
    """  # noqa: D301  click reads the character \b, not the two that spell it
    from ..engines.pipeline_folder.folder import pipeline_folder as write_folder

    show_folder(write_folder(bundle, destination, force=force, **options), output)


def show_folder(folder: Artifact[PipelineFolderDetails], output: Output) -> None:
    """What the tool will find in the folder."""
    details = folder.details
    rows = [
        ("for", details.tool),
        ("pipeline", details.pipeline_class),
        ("denoiser", f"{details.component}, {'any batch' if details.batch is None else f'batch {details.batch}'}"),
        ("size", f"{sum(entry.size for entry in folder.manifest.files.values()) / 1e6:.1f} MB"),
    ]
    output.table(str(folder.path), ("", ""), rows)
    output.data({"folder": folder.path, "manifest": folder.manifest.model_dump()})
