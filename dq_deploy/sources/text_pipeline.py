"""The whole pipeline around a denoiser, for models that only their pipeline can drive: prompts need a tokenizer and text encoders."""

from __future__ import annotations

import copy
import inspect
import logging
import re
from pathlib import Path
from typing import Any

import torch

from ..errors import ArtifactError, EnvironmentProblem, raise_if_out_of_memory, summarized
from .controlnet import with_controlnet
from .model_files import load_part
from .pipeline_index import INDEX_NAME, class_of_diffusers, left_out_parts, read_components, read_pipeline_index
from .plain_copy import is_quantized, plain_copy
from .quiet import no_progress_bars, without_torchvision
from .resolve import local_folder, resolve
from .source import Source
from .weights import readable

_LOG = logging.getLogger(__name__)
_WHOLE = "prompts need the whole pipeline: text encoders and tokenizers beside the denoiser, as `pipeline.save_pretrained(DIR)` writes"


_GIVEN = ("prompt", "class_labels", "image", "mask_image", "control_image")
"""Arguments of pipelines that options give."""
_LIBRARY = re.compile(r"requires the (\w+) library")
"""As transformers says what is missing."""
_LEFT_OUT = ("text_encoder_3", "tokenizer_3")
"""Parts that a saved pipeline may lack and diffusers asks for: Stable Diffusion 3 does without its T5, which is twice its size."""


def takes_prompts(source: Source) -> bool:
    """Whether the source's pipeline is called with a prompt. Raises EnvironmentProblem when a library that it needs is missing."""
    return _called_with_prompt(_class_of(source))


def _class_of(source: Source) -> type | None:
    """The class of the source's pipeline; None for one that diffusers does not have."""
    return type(source.pipeline) if source.pipeline is not None else _known_class(source.pipeline_class)


def prompted_class(source: str | Path) -> str | None:
    """The class of a pipeline in the user's folder where that is called with a prompt, by its index alone. Raises as reading it does."""
    folder = local_folder(source)
    if folder is None or not (folder / INDEX_NAME).is_file():
        return None
    name = read_pipeline_index(folder).pipeline_class
    return name if _called_with_prompt(_known_class(name)) else None


def _called_with_prompt(kind: type | None) -> bool:
    missing = getattr(kind, "_backends", None)  # diffusers puts a dummy in the place of what it cannot import
    if kind is not None and missing:
        raise EnvironmentProblem(f"a {kind.__name__} needs {' and '.join(missing)}", f"pip install {' '.join(missing)}")
    return kind is not None and "prompt" in inspect.signature(kind.__call__).parameters


def picture_alone(kind: Any) -> bool:
    """Whether a pipeline is called with a picture and no prompt, as Stable Video Diffusion's is: by its class, or its name in diffusers.

    False for a name that diffusers does not have.
    """
    kind = _known_class(kind) if isinstance(kind, str) else kind
    taken = {} if kind is None else inspect.signature(kind.__call__).parameters
    return "image" in taken and taken["image"].default is inspect.Parameter.empty and "prompt" not in taken


def runs_by_itself(source: Source) -> bool:
    """Whether the source's own pipeline is what calibrates it: one that takes prompts or a picture."""
    return takes_prompts(source) or picture_alone(_class_of(source))


def asked_beside(source: Source) -> list[str]:
    """What the source's pipeline must be given that no option gives, such as the embeddings that another pipeline makes of a picture."""
    kind = _class_of(source)
    taken = {} if kind is None else inspect.signature(kind.__call__).parameters
    needed = [name for name, p in taken.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return [name for name in needed if name not in ("self", *_GIVEN)]


def text_pipeline(source: Source) -> Any:
    """A diffusers pipeline in float32 whose denoiser and scheduler are the source's; the user's own is not changed.

    Raises ArtifactError when the folder's other parts cannot be loaded, or ask for code from outside diffusers and transformers, and
    EnvironmentProblem without transformers.
    """
    if source.pipeline is not None:
        pipeline = _own(source.pipeline, **{source.component: source.model, "scheduler": source.scheduler})
    else:
        _, root = resolve(source.reference, whole=True)
        pipeline = load_whole(root, **{source.component: source.model, "scheduler": source.scheduler})
    if source.controlnet is not None:
        pipeline = with_controlnet(pipeline, source.controlnet)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _own(pipeline: Any, **parts: Any) -> Any:
    """A pipeline of our own with ``parts``, and with plain copies of the other models that share their weights with the caller's."""
    own = copy.copy(pipeline)
    for name, part in pipeline.components.items():
        if name not in parts and isinstance(part, torch.nn.Module) and not is_quantized(part):
            parts[name] = plain_copy(part, None)
    own.register_modules(**parts)
    own._all_hooks = []  # diffusers would offload anew what it finds there, after each call
    return own


def load_whole(root: Path, *, encodes: bool = False, **parts: Any) -> Any:
    """The pipeline in ``root`` in float32 without its safety checker; ``parts`` are not loaded but taken as given.

    ``encodes``: with what looks at pictures, for an adapter. Raises as above.
    """
    index = read_pipeline_index(root)
    components = read_components(root)
    from diffusers import DiffusionPipeline

    kind = class_of_diffusers(index.pipeline_class, DiffusionPipeline, root)
    parameters = inspect.signature(kind.__init__).parameters
    needless = {name: None for name in left_out_parts(index.pipeline_class, encodes=encodes) if name in components}
    needless |= {name: None for name in _LEFT_OUT if name in parameters and name not in components}
    flags = {"requires_safety_checker": False} if "requires_safety_checker" in parameters else {}
    required = [name for name in components if name not in needless and name not in parts]
    if any(components[name][0] == "transformers" for name in required):
        _require_transformers(index.pipeline_class)
    _check_parts(root, {name: components[name] for name in required})
    with readable(root, required) as folder:
        try:
            with no_progress_bars(), without_torchvision():
                made = {name: load_part(folder, name, *components[name], root / name) for name in required}
                models = {name: model for name, model in made.items() if model is not None}
                pipeline = kind.from_pretrained(
                    folder, **parts, **models, **needless, **flags, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False,
                )  # fmt: skip
        except ArtifactError:
            raise
        except ImportError as error:  # Qwen-Image-Edit's processor asks for torchvision
            named = _LIBRARY.search(str(error))
            raise EnvironmentProblem(
                f"the {index.pipeline_class} in {root} cannot be loaded: {summarized(error)}",
                f"pip install {named[1].lower()}" if named else "install what it names",
            ) from error
        except Exception as error:  # diffusers and transformers raise a dozen kinds for a damaged or missing part
            raise_if_out_of_memory(error, f"loading the {index.pipeline_class} in {root}")
            _LOG.debug("loading %s failed", root, exc_info=True)
            raise ArtifactError(
                f"cannot load the {index.pipeline_class} in {root}: {summarized(error)}",
                _WHOLE,
            ) from error
    for name in required:
        part = getattr(pipeline, name)
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, torch.float32)  # Module's own: the one that diffusers puts over it warns
    return pipeline


def _require_transformers(pipeline_class: str) -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(f"a {pipeline_class} needs transformers: {error}", "pip install transformers") from None


def _check_parts(root: Path, components: dict[str, tuple[str, str]]) -> None:
    foreign = [f"{name} ({library}.{kind})" for name, (library, kind) in components.items() if library not in ("diffusers", "transformers")]
    if foreign:
        raise ArtifactError(f"{root} asks for {', '.join(foreign)}; only classes of diffusers and transformers are loaded")
    missing = [name for name in components if not (root / name).is_dir()]
    if missing:
        raise ArtifactError(f"{root} has no folder {', '.join(missing)}", "prompts need the whole pipeline, not the denoiser alone")


def _known_class(name: str) -> Any:
    import diffusers

    with without_torchvision():  # the class brings those of transformers
        found = getattr(diffusers, name, None) if name else None
    return found if isinstance(found, type) else None
