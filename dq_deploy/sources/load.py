"""Loading a denoiser and its scheduler, with nothing from disk run as code."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..artifacts import sha256_file
from ..artifacts.reading import check_safetensors
from ..errors import ArtifactError, EnvironmentProblem, UsageError
from .lora import Lora, check_lora, fused_copy, has_adapters, load_lora
from .pickles import as_safetensors, pickles_allowed
from .pipeline_index import WEIGHTS_SUFFIX, Component, PipelineIndex, read_pipeline_index
from .resolve import resolve
from .source import Source, check_finite, weights_sha256

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_LOG = logging.getLogger(__name__)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_source(source: str | Path | DiffusionPipeline, *, lora: Lora | None = None) -> Source:
    """Load the denoiser of a built-in (``builtin:NAME``), a diffusers pipeline folder, a hub id, or a copy of it from a pipeline object.

    Adapters of a pipeline object are fused into the copy, as is the file ``lora`` of a folder or hub id.

    Raises UsageError (no such path or name, an adapter that cannot be fused), ArtifactError (no pipeline in there, pickled, damaged or
    non-finite weights) and EnvironmentProblem (no diffusers, no peft).
    """
    if not isinstance(source, str | Path):
        if lora is not None:
            raise UsageError("a LoRA file is for a pipeline folder or hub id", "load it into the pipeline object: load_lora_weights(FILE)")
        return _from_pipeline(source)
    _require_diffusers()
    if lora is not None:
        return _with_lora(source, lora)
    name, root = resolve(source)
    index = read_pipeline_index(root)
    model = _load_model(root, index)
    config = _config(model)
    return _checked(
        name=name,
        reference=str(source),
        model=model,
        component=index.component,
        scheduler=_load_scheduler(root, index),
        config=config,
        pipeline_class=index.pipeline_class,
        sample_shape=_sample_shape(config),
    )


def reload_source(origin: Mapping[str, Any]) -> Source:
    """The source that a manifest's ``origin`` names, with the LoRA file that was fused then. Raises as ``load_source`` does."""
    lora = origin.get("lora")
    return load_source(origin["reference"], lora=Lora(Path(lora["path"]), lora["scale"]) if lora else None)


def source_from_module(module: torch.nn.Module, *, scheduler: Any, sample_shape: tuple[int, ...], name: str | None = None) -> Source:
    """A source from any module called as ``module(sample, timestep, **conditions)``; the module is copied, not changed.

    ``sample_shape`` is the shape of one sample without the batch. Raises UsageError when it is no shape and ArtifactError for a NaN or
    infinite weight.
    """
    if not sample_shape or any(not isinstance(size, int) or size < 1 for size in sample_shape):
        raise UsageError(f"sample_shape must be positive whole numbers without the batch, such as (1, 32, 32); it is {sample_shape!r}")
    class_name = type(module).__qualname__
    return _checked(
        name=name or class_name,
        reference=f"object:{class_name}",
        model=copy.deepcopy(module),
        component="module",
        scheduler=scheduler,
        config={"_class_name": class_name},
        pipeline_class="",
        sample_shape=tuple(sample_shape),
    )


def module_source(module: torch.nn.Module, scheduler: Any, sample_shape: tuple[int, ...]) -> Source:
    """A source around a module itself, uncopied and without a pipeline; one of diffusers keeps its configuration. Adapters are fused."""
    config = _config(module) if hasattr(module, "to_json_string") else {}
    module = fused_copy(module) if has_adapters(module) else module.float().eval()
    return Source(
        name=type(module).__name__, reference="", model=module, component="module", scheduler=scheduler, config=config, pipeline_class="",
        sample_shape=sample_shape, sha256="",
    )  # fmt: skip


def _with_lora(source: str | Path, lora: Lora) -> Source:
    from .text_pipeline import load_whole

    check_lora(lora)
    name, root = resolve(source, whole=True)
    pipeline = load_whole(root)
    load_lora(pipeline, lora)
    record = {"path": str(lora.path), "scale": lora.scale, "sha256": sha256_file(lora.path)}
    return replace(_from_pipeline(pipeline), name=name, reference=str(source), lora=record)


def _from_pipeline(pipeline: Any) -> Source:
    class_name = type(pipeline).__name__
    component: Component = "unet" if getattr(pipeline, "unet", None) is not None else "transformer"
    model = getattr(pipeline, component, None)
    scheduler = getattr(pipeline, "scheduler", None)
    if not isinstance(model, torch.nn.Module) or scheduler is None:
        raise UsageError(f"a source is a path, a hub id, a built-in name or a pipeline with a unet or transformer, not a {class_name}")
    config = _config(model)
    return _checked(
        name=class_name,
        reference=f"object:{class_name}",
        model=fused_copy(model),
        pipeline=pipeline,
        component=component,
        scheduler=scheduler,
        config=config,
        pipeline_class=class_name,
        sample_shape=_sample_shape(config),
    )


def _config(model: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(model.to_json_string())
    # The folder that a model came from is no property of the model, and would differ from machine to machine.
    config.pop("_name_or_path", None)
    return config


def _checked(*, reference: str, model: torch.nn.Module, **fields: Any) -> Source:
    # Module.to itself: the one that diffusers puts over it warns of every change of type.
    model = torch.nn.Module.to(model, "cpu", torch.float32).eval()
    state = model.state_dict()
    check_finite(reference, state)
    return Source(reference=reference, model=model, sha256=weights_sha256(state), **fields)


def _load_model(root: Path, index: PipelineIndex) -> Any:
    with as_safetensors(root, [index.component]) as readable:
        return _load_safetensors(readable, index)


def _load_safetensors(root: Path, index: PipelineIndex) -> Any:
    from diffusers import ModelMixin

    folder = root / index.component
    _check_weights(folder)
    # Only "x.fp16.safetensors" there: diffusers calls the middle part a variant, and finds it only by name.
    names = {path.name for path in folder.glob(f"*{WEIGHTS_SUFFIX}*")}
    variant = "fp16" if names and all(".fp16." in name for name in names) else None
    try:
        model, report = class_of_diffusers(index.model_class, ModelMixin, root).from_pretrained(
            root,
            subfolder=index.component,
            use_safetensors=True,
            variant=variant,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # diffusers raises a dozen kinds for a damaged file or a configuration that does not fit
        _LOG.debug("loading %s failed", folder, exc_info=True)
        raise ArtifactError(f"cannot load the {index.model_class} in {folder}: {summarized(error)}") from error
    # diffusers only warns of these, and goes on with random weights.
    problems = [f"{kind.replace('_', ' ')}: {', '.join(map(str, report[kind][:5]))}" for kind in _MISFITS if report.get(kind)]
    if problems:
        raise ArtifactError(f"the weights in {folder} do not fit its config.json: {'; '.join(problems)}")
    return model


_MISFITS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def _check_weights(folder: Path) -> None:
    """Refuse weights that are pickled only, and safetensors that are none."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder.parent} is no complete diffusers pipeline: it has no folder '{folder.name}'")
    if weights := sorted(folder.glob(f"*{WEIGHTS_SUFFIX}")):
        for path in weights:
            check_safetensors(path)
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickled:
        raise ArtifactError(
            f"{folder} has only pickled weights ({', '.join(pickled)}), which can run code when loaded: refused",
            "--allow-pickle (in Python: with dq_deploy.allow_pickles()) reads .bin files as plain tensors, and runs nothing in them; or "
            "write safetensors with diffusers: `pipeline.save_pretrained(DIR)`",
        )
    hint = None if pickles_allowed() else "an older pipeline may have pickled ones: --allow-pickle reads them as plain tensors"
    raise ArtifactError(f"{folder} has no weights (*{WEIGHTS_SUFFIX})", hint)


def _load_scheduler(root: Path, index: PipelineIndex) -> Any:
    from diffusers import SchedulerMixin

    scheduler_class = class_of_diffusers(index.scheduler_class, SchedulerMixin, root)
    try:
        return scheduler_class.from_pretrained(root, subfolder="scheduler", local_files_only=True)
    except Exception as error:  # as above
        raise ArtifactError(f"cannot load the {index.scheduler_class} in {root / 'scheduler'}: {summarized(error)}") from error


def class_of_diffusers(name: str, base: type, root: Path) -> Any:
    """Class ``name`` of diffusers. A name from a file is only ever looked up there, and must be of the right kind."""
    import diffusers

    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        kind = {"SchedulerMixin": "scheduler", "DiffusionPipeline": "pipeline"}.get(base.__name__, "model")
        raise ArtifactError(f"{root}: diffusers {diffusers.__version__} has no {kind} class '{name}'", "a newer diffusers may have it")
    return found


def _sample_shape(config: dict[str, Any]) -> tuple[int, ...]:
    """(C, H, W) as the configuration has it; empty where it does not (FLUX's pipelines choose the size themselves)."""
    channels, size = config.get("in_channels"), config.get("sample_size")
    sizes = [size, size] if isinstance(size, int) else size
    if not isinstance(channels, int) or not isinstance(sizes, list) or not sizes or not all(isinstance(edge, int) for edge in sizes):
        return ()
    return (channels, *sizes)


def summarized(error: Exception) -> str:
    """The first lines of what a library says, short enough for one error line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch puts the tensor's name on the second line.
    return " ".join(lines[:2])[:400] or type(error).__name__


def _require_diffusers() -> None:
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(f"loading a pipeline needs diffusers: {error}", "pip install diffusers") from None
