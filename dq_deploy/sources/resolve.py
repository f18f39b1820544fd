"""From what the user typed to a pipeline folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import EnvironmentProblem, UsageError, did_you_mean
from .hub_access import download_error, from_hub
from .pickles import PICKLED_WEIGHTS, pickles_allowed
from .pipeline_index import INDEX_NAME, WEIGHTS_SUFFIX, left_out_parts, read_components, read_pipeline_index
from .recognize import file_error, folder_error

BUILTIN_PREFIX = "builtin:"
_VOCABULARIES = (".txt", ".model")  # of tokenizers
_BUILTINS = Path(__file__).parent / "builtin"
_PROMPTS = "prompts.txt"
# "owner/name", with an optional "@revision". Names without an owner are left to paths.
_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


def builtin_names() -> list[str]:
    """Names of the pipelines that ship with the package, without the ``builtin:`` prefix."""
    return sorted(path.name for path in _BUILTINS.iterdir() if path.is_dir())


def builtin_path(name: str) -> Path:
    """Folder of a built-in pipeline.

    Raises UsageError, listing those that exist, when there is none of this name.
    """
    if name not in builtin_names():
        raise UsageError(
            f"unknown built-in model '{BUILTIN_PREFIX}{name}'", f"{did_you_mean([name], builtin_names())}those that exist: {_known()}"
        )
    return _BUILTINS / name


def builtin_prompts(source: str | Path | None) -> Path | None:
    """File of the prompts that a built-in text pipeline comes with, one on a line; None for every other source."""
    name = str(source).removeprefix(BUILTIN_PREFIX)
    path = _BUILTINS / name / _PROMPTS
    return path if str(source).startswith(BUILTIN_PREFIX) and name in builtin_names() and path.is_file() else None


def _known() -> str:
    return ", ".join(BUILTIN_PREFIX + name for name in builtin_names())


def local_folder(source: str | Path) -> Path | None:
    """The user's own folder that ``source`` stands for; None for a built-in name and a hub id."""
    path = Path(source).expanduser()
    return None if str(source).startswith(BUILTIN_PREFIX) or not path.is_dir() else path


def resolve(source: str | Path, *, whole: bool = False) -> tuple[str, Path]:
    """Name of the model and the pipeline folder that ``source`` stands for; a hub id is downloaded, or found in the hub's cache.

    ``whole`` wants every part of a hub pipeline rather than the denoiser and the scheduler alone.
    Raises UsageError when there is no such path, built-in or hub model, ArtifactError when the path is a file.
    """
    text = str(source)
    if isinstance(source, str) and text.startswith(BUILTIN_PREFIX):
        name = text.removeprefix(BUILTIN_PREFIX)
        return name, builtin_path(name)
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / INDEX_NAME).is_file():
            raise folder_error(path)
        return path.resolve().name, path
    if path.exists():
        raise file_error(path)
    match = _HUB_ID.fullmatch(text) if isinstance(source, str) else None
    if match is None:
        raise UsageError(f"no such path: {source}", f"give a diffusers pipeline folder, a hub id (owner/name), or a built-in: {_known()}")
    return match["id"].split("/")[1], _download(match["id"], match["revision"], whole=whole)


def _download(hub_id: str, revision: str | None, *, whole: bool) -> Path:
    """Fetch the index, the denoiser and the scheduler of a hub pipeline, or all its parts: safetensors, JSON and vocabularies, no code."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise EnvironmentProblem(f"the hub model '{hub_id}' needs huggingface_hub: {error}", "pip install huggingface_hub") from None

    def fetch(patterns: list[str], ignore: list[str] | None = None) -> Path:
        try:
            return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=ignore))
        except Exception as error:
            if not from_hub(error):
                raise
            raise download_error(error, hub_id, "model") from None

    root = fetch(["model_index.json"])
    index = read_pipeline_index(root)
    folders = [index.component, "scheduler"]
    if whole:
        folders = [name for name in read_components(root) if name not in left_out_parts(index.pipeline_class)]
    files = ["model_index.json", *(f"{folder}/*{suffix}" for folder in folders for suffix in (".json", WEIGHTS_SUFFIX, *_VOCABULARIES))]
    # Half-precision copies are fetched only where there is no other.
    path = fetch(files, ["*.fp16.*", "*.non_ema.*"])
    models = [folder for folder in folders if folder != "scheduler" and "tokenizer" not in folder]

    def without_weights() -> list[str]:
        return [folder for folder in models if not any((path / folder).glob(f"*{WEIGHTS_SUFFIX}"))]

    if without_weights():
        path = fetch(files, ["*.non_ema.*"])
    if pickles_allowed() and (lacking := without_weights()):
        path = fetch([*files, *(f"{folder}/{PICKLED_WEIGHTS}" for folder in lacking)], ["*.fp16.*", "*.non_ema.*"])
    return path
