"""Reading ``model_index.json``: which diffusers classes a pipeline folder asks for."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..artifacts.reading import read_json
from ..errors import ArtifactError
from .quiet import without_torchvision

INDEX_NAME = "model_index.json"
WEIGHTS_SUFFIX = ".safetensors"
Component = Literal["unet", "transformer", "controlnet", "module"]
_DENOISERS: tuple[Literal["unet", "transformer"], ...] = ("unet", "transformer")


@dataclass(frozen=True)
class PipelineIndex:
    """The parts of a pipeline that are read here; class names are those of diffusers itself, never of code in the folder."""

    pipeline_class: str
    component: Literal["unet", "transformer"]
    model_class: str
    scheduler_class: str


def read_pipeline_index(root: Path) -> PipelineIndex:
    """Read and check ``model_index.json`` of the pipeline folder ``root``.

    Raises ArtifactError when it is missing or invalid, names no denoiser or scheduler, or asks for classes from outside diffusers.
    """
    path, index = root / INDEX_NAME, _read(root)
    component = next((name for name in _DENOISERS if _is_present(index.get(name))), None)
    if component is None:
        raise ArtifactError(f"{path}: a {index['_class_name']} without a denoiser; one of {', '.join(_DENOISERS)} is needed")
    return PipelineIndex(
        pipeline_class=index["_class_name"],
        component=component,
        model_class=_diffusers_class(path, component, index[component]),
        scheduler_class=_diffusers_class(path, "scheduler", index.get("scheduler")),
    )


def read_components(root: Path) -> dict[str, tuple[str, str]]:
    """Name → (library, class) of every part that the pipeline folder ``root`` says it has. Raises ArtifactError as above."""
    components = {}
    for name, entry in _read(root).items():
        if not name.startswith("_") and isinstance(entry, list) and _is_present(entry):
            if len(entry) != 2 or not all(isinstance(item, str) for item in entry):
                raise ArtifactError(f"{root / INDEX_NAME}: '{name}' must be a pair of library and class, not {json.dumps(entry)}")
            components[name] = (entry[0], entry[1])
    return components


def _read(root: Path) -> dict[str, Any]:
    path = root / INDEX_NAME
    if not path.is_file():
        raise ArtifactError(f"{root} is not a diffusers pipeline: it has no {INDEX_NAME}", "`pipeline.save_pretrained(DIR)` writes one")
    index = read_json(path, "valid JSON")
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ArtifactError(f"{path} names no pipeline class of diffusers")
    return index


def _is_present(entry: Any) -> bool:
    # A pipeline saved with an optional part left out has [null, null] there.
    return entry is not None and entry != [None, None]


def _diffusers_class(path: Path, part: str, entry: Any) -> str:
    if not _is_present(entry):
        raise ArtifactError(f"{path} names no {part}")
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(item, str) for item in entry)):
        raise ArtifactError(f"{path}: '{part}' must be a pair of library and class, not {json.dumps(entry)}")
    library, name = entry
    if library != "diffusers":
        raise ArtifactError(f"{path}: '{part}' asks for {library}.{name}; only classes of diffusers are loaded, never code from the folder")
    return str(name)


def left_out_parts(pipeline_class: str, *, encodes: bool = False) -> tuple[str, ...]:
    """Parts of a pipeline through which no trajectory passes: they look at finished pictures, or at those of an adapter.

    Where a class takes pictures for themselves (of videos that begin with one), or the pipeline ``encodes`` them, what looks at these is
    needed.
    """
    import diffusers

    found = getattr(diffusers, pipeline_class, None)
    taken = inspect.signature(found.__call__).parameters if isinstance(found, type) else {}
    return _LOOKING[:1] if encodes or ("image" in taken and "ip_adapter_image" not in taken) else _LOOKING


_LOOKING = ("safety_checker", "feature_extractor", "image_encoder")


def class_of_diffusers(name: str, base: type, root: Path) -> Any:
    """Class ``name`` of diffusers. A name from a file is only ever looked up there, and must be of the right kind."""
    import diffusers

    with without_torchvision():  # a pipeline's class brings those of transformers
        found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        kind = {"SchedulerMixin": "scheduler", "DiffusionPipeline": "pipeline"}.get(base.__name__, "model")
        raise ArtifactError(f"{root}: diffusers {diffusers.__version__} has no {kind} class '{name}'", "a newer diffusers may have it")
    return found
