"""What was given in place of a pipeline folder, said by name, with the way on."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..artifacts import MANIFEST_NAME
from ..artifacts.reading import read_json, refuse_stand_in, tensor_shapes
from ..errors import ArtifactError
from .pickles import PICKLES
from .pipeline_index import INDEX_NAME, WEIGHTS_SUFFIX

_ENGINES = {".engine": "a TensorRT engine", ".plan": "a TensorRT engine", ".trt": "a TensorRT engine", ".xml": "an OpenVINO model"}
_ARCHIVES = (".zip", ".tar", ".gz", ".7z", ".tgz")
# How the tensors of a checkpoint begin that holds a whole pipeline, or its denoiser as its authors named it.
_ORIGINAL = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "double_blocks.", "joint_blocks.", "input_blocks.")
_FROM_FILE = "in Python, with its own pipeline class: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR)"
_OWN_MODULE = "from Python: dq_deploy.quantize(module, OUTPUT, scheduler=SCHEDULER, sample_shape=(C, H, W))"
_FLOAT_MODEL = "give the PyTorch model that it was made from: a diffusers pipeline folder, or from Python any module"


def file_error(path: Path) -> ArtifactError:
    """Why this file is not a source. Raises ArtifactError itself for a stand-in, and for invalid safetensors."""
    if not path.is_file():
        return ArtifactError(f"{path} is not a regular file, and no diffusers pipeline folder")
    refuse_stand_in(path)
    suffix = path.suffix.lower()
    if folder := _pipeline_around(path):
        return ArtifactError(f"{path} is a file of the pipeline in {folder}", f"give the folder: {folder}")
    if suffix == WEIGHTS_SUFFIX:
        return _tensors_error(path, tensor_shapes(path))
    if suffix == ".gguf":
        return ArtifactError(f"{path} is a GGUF file, whose weights are quantized already", _FLOAT_MODEL)
    if suffix == ".onnx":
        return ArtifactError(f"{path} is an ONNX graph, and what is quantized here are PyTorch models", _FLOAT_MODEL)
    if suffix in _ENGINES:
        return ArtifactError(f"{path} is {_ENGINES[suffix]}", _FLOAT_MODEL)
    if suffix in _ARCHIVES:
        return ArtifactError(f"{path} is an archive", "unpack it, and give the folder that holds model_index.json")
    if suffix in PICKLES or suffix == ".pt2":
        return _pickle_error(path)
    return ArtifactError(f"{path} is a file, not a diffusers pipeline folder", f"give the folder that holds {INDEX_NAME}")


def folder_error(root: Path) -> ArtifactError:
    """Why this folder, which has no ``model_index.json``, is not a source."""
    message = f"{root} is not a diffusers pipeline: it has no {INDEX_NAME}"
    kind = _json(root / MANIFEST_NAME).get("kind")
    if isinstance(kind, str) and "schema_version" in _json(root / MANIFEST_NAME):
        return ArtifactError(f"{message}; it is a {kind} of dq-deploy", f"dq-deploy inspect {root} says what it was made from")
    if (root / "adapter_config.json").is_file() or any(root.glob("pytorch_lora_weights.*")):
        return ArtifactError(f"{message}; it is an adapter (LoRA)", "give the pipeline that it is for, with --lora FILE")
    config = _json(root / "config.json")
    if (root.absolute().parent / INDEX_NAME).is_file():
        return ArtifactError(f"{message}; it is a part of the pipeline in {root.absolute().parent}", "give that folder")
    if isinstance(name := config.get("_class_name"), str) and "ControlNet" in name:
        return ArtifactError(
            f"{message}; it is a {name}, which steers a pipeline", "give that too: --pipeline DIR --control-image FILE --prompts FILE"
        )
    if isinstance(name, str):
        return ArtifactError(
            f"{message}; it is a {name} alone, without its scheduler",
            f"from Python: dq_deploy.quantize({name}.from_pretrained(DIR), OUTPUT, scheduler=SCHEDULER, sample_shape=(C, H, W))",
        )
    if "model_type" in config or "architectures" in config:
        name = (config.get("architectures") or [config.get("model_type")])[0]
        return ArtifactError(f"{message}; it is the transformers model {name}", "diffusion pipelines are quantized here")
    if below := sorted(
        path.parent.relative_to(root).as_posix() for path in [*root.glob(f"*/{INDEX_NAME}"), *root.glob(f"snapshots/*/{INDEX_NAME}")]
    ):
        return ArtifactError(f"{message}; what lies below it has one: {', '.join(below[:5])}", f"give one of these: {root / below[0]}")
    others = [path for path in sorted(root.iterdir()) if path.suffix in (WEIGHTS_SUFFIX, ".onnx", ".gguf", *PICKLES, *_ENGINES)]
    if others:
        error = file_error(others[0])
        return ArtifactError(f"{message}; {error.message}", error.hint)
    return ArtifactError(message, "`pipeline.save_pretrained(DIR)` writes one")


def other_weights(folder: Path) -> str | None:
    """Names of files in a part's folder that hold its weights for another framework; None without any."""
    found = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".onnx", ".gguf", ".msgpack", ".h5", *_ENGINES)]
    return ", ".join(found[:3]) or None


def _tensors_error(path: Path, shapes: Mapping[str, object]) -> ArtifactError:
    names = list(shapes)
    if names and all(_of_adapter(name) for name in names):
        return ArtifactError(
            f"{path} is a LoRA, which changes a model and is not one itself", "give the pipeline that it is for, with --lora FILE"
        )
    if _json(path.parent / "config.json").get("_class_name"):
        error = folder_error(path.parent)
        return ArtifactError(f"{path} holds the weights of one part of a pipeline: {error.message.partition('; ')[2]}", error.hint)
    if any(name.startswith(_ORIGINAL) for name in names):
        return ArtifactError(f"{path} is a single-file checkpoint, not a diffusers pipeline folder", _FROM_FILE)
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return ArtifactError(f"{path} holds {len(names)} tensors ({shown}) and no pipeline", f"load them into their module; {_OWN_MODULE}")


def _of_adapter(name: str) -> bool:
    parts = name.replace("_", ".").split(".")
    return any(part in ("lora", "loha", "lokr", "lycoris", "hada", "dora") for part in parts) or name.endswith(".alpha")


def _pickle_error(path: Path) -> ArtifactError:
    inside = _archived(path)
    if any("/code/" in name or name.endswith("constants.pkl") for name in inside):
        return ArtifactError(f"{path} is a TorchScript program, which has no Python forward", f"load the module itself; {_OWN_MODULE}")
    if any(name.endswith(".json") and "models/" in name for name in inside) or path.suffix == ".pt2":
        return ArtifactError(f"{path} is a program that torch.export wrote", f"load the module that it was made from; {_OWN_MODULE}")
    return ArtifactError(
        f"{path} is a pickled checkpoint, which can run code when loaded, and no diffusers pipeline folder",
        f"if you trust it: load it into its module with torch.load(..., weights_only=True); {_OWN_MODULE}; "
        f"a checkpoint of Stable Diffusion {_FROM_FILE}",
    )


def _archived(path: Path) -> Iterable[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []


def _pipeline_around(path: Path) -> Path | None:
    """The pipeline folder that a file belongs to: as one of its own, or of one of its parts."""
    above = path.absolute().parents[:2]
    return next((folder for folder in above if (folder / INDEX_NAME).is_file()), None)


def _json(path: Path) -> dict[str, Any]:
    """An object from a file, for its description only; an empty one where there is none."""
    try:
        found = read_json(path, "valid JSON")
    except (ArtifactError, OSError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
