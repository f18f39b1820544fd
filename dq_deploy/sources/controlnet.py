"""ControlNets: loaded from a folder of their own, and put into the pipeline that they steer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artifacts.reading import read_json
from ..errors import ArtifactError, UsageError
from .model_files import load_model

_WORD = "ControlNet"


def load_controlnet(folder: Path) -> Any:
    """The ControlNet in ``folder``, in float32.

    Raises UsageError (no such folder) and ArtifactError (another model in there; weights that are missing, pickled or damaged).
    """
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise UsageError(f"no such ControlNet folder: {folder}", "hf download OWNER/NAME --local-dir DIR fetches one")
    if not is_controlnet(folder):
        raise ArtifactError(f"{folder} holds no ControlNet: its config.json names {class_in(folder) or 'no class'}")
    return load_model(folder, class_in(folder))


def is_controlnet(folder: Path) -> bool:
    """Whether a folder holds a ControlNet of diffusers by itself."""
    return _WORD in class_in(folder)


def class_in(folder: Path) -> str:
    """The class that a folder's ``config.json`` names; empty where there is none."""
    path = folder.expanduser() / "config.json"
    described = read_json(path, "valid JSON") if path.is_file() else {}
    name = described.get("_class_name") if isinstance(described, dict) else None
    return name if isinstance(name, str) else ""


def with_controlnet(pipeline: Any, controlnet: Any) -> Any:
    """The pipeline of the same parts that ``controlnet`` steers. Raises UsageError where diffusers has none."""
    from diffusers import AutoPipelineForText2Image

    try:
        made = AutoPipelineForText2Image.from_pipe(pipeline, controlnet=controlnet)
    except ValueError as error:
        raise UsageError(
            f"diffusers has no pipeline of a {type(pipeline).__name__}'s parts that a {type(controlnet).__name__} steers: {error}",
            "give a pipeline and a ControlNet of one family",
        ) from None
    made.set_progress_bar_config(disable=True)
    return made
