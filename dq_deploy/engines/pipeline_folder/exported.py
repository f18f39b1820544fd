"""The pipeline as the tool's own exporter has written it, and how to have it written."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts.details import BundleDetails
from ...artifacts.reading import read_json
from ...errors import ArtifactError, EnvironmentProblem, UsageError
from .tools import Tool

INDEX = "model_index.json"
_DENOISERS = ("unet", "transformer")


@dataclass(frozen=True)
class Exported:
    """An exported pipeline: its folder, and the folder in it of the denoiser that ours replaces."""

    path: Path
    component: str
    pipeline_class: str


def open_exported(path: Path, tool: Tool, details: BundleDetails) -> Exported:
    """The exported pipeline there, which is that of the bundle's network.

    Raises UsageError (no such folder) and ArtifactError (not such a folder, or another network's).
    """
    if not path.is_dir():
        raise UsageError(f"no such folder: {path}", f"make it with: {tool.command('PIPELINE', path)}")
    index = _json(path / INDEX, path, tool)
    component = next((name for name in _DENOISERS if (path / name / tool.file).is_file()), None)
    if component is None:
        looked = " or ".join(f"{name}/{tool.file}" for name in _DENOISERS)
        raise ArtifactError(f"{path} is not a pipeline that {tool.exporter} has exported: it has no {looked}", _again(tool, path))
    _check_network(path, _json(path / component / "config.json", path, tool), details)
    return Exported(path, component, str(index.get("_class_name")))


def _json(file: Path, path: Path, tool: Tool) -> dict[str, Any]:
    if not file.is_file():
        raise ArtifactError(f"{path} is not a pipeline that {tool.exporter} has exported: it has no {file.name}", _again(tool, path))
    found = read_json(file, "valid JSON", hint=_again(tool, path))
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} is not a pipeline that {tool.exporter} has exported: {file.name} is not an object", _again(tool, path))
    return found


def _again(tool: Tool, path: Path) -> str:
    return f"make {path.name} with: {tool.command('PIPELINE', path.name)}"


def _check_network(path: Path, config: dict[str, Any], details: BundleDetails) -> None:
    """Refuse another network's folder: what the two configurations both say must agree."""
    own = details.network_config or {}
    differ = [
        f"{name}: {config[name]!r} there, {own[name]!r} in the bundle"
        for name in sorted(config.keys() & own.keys())
        if not name.startswith("_") and config[name] != own[name]
    ]
    if differ:
        shown = "; ".join(differ[:4])
        raise ArtifactError(
            f"{path} was exported from another network than the bundle: {shown}",
            "export the pipeline that the bundle was quantized from",
        )


def export_pipeline(source: Path, output: Path, tool: Tool, optimum_cli: str) -> None:
    """Run the tool's exporter. It may live in another environment: ``optimum_cli`` is a command line.

    Raises EnvironmentProblem (no such command) and ArtifactError (it failed).
    """
    if not (source / INDEX).is_file():
        raise UsageError(f"{source} is not a pipeline's folder: it has no {INDEX}", "give --pipeline FOLDER, or --exported FOLDER")
    program, *rest = shlex.split(optimum_cli)
    found = shutil.which(program)
    if found is None:
        raise EnvironmentProblem(
            f"there is no '{program}' here to export the rest of the pipeline with",
            f"in an environment of its own: pip install {tool.install}; then --optimum-cli PATH/bin/optimum-cli, "
            f"or run it yourself and give --exported: {tool.command(source, output)}",
        )
    command = [found, *rest, *tool.arguments(source, output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  the command that the user named
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        last = lines[-1].strip() if lines else "it says nothing"
        raise ArtifactError(f"{program} failed with exit code {done.returncode}: {last}", f"run it yourself: {shlex.join(command)}")
