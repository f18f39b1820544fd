"""Loading a denoiser and its scheduler, with nothing from disk run as code."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..artifacts import sha256_file
from ..artifacts.details import Origin, Place
from ..artifacts.origin import absolute_place, places
from ..errors import ArtifactError, EnvironmentProblem, UsageError, raise_if_out_of_memory, summarized
from .controlnet import is_controlnet, load_controlnet, with_controlnet
from .ip_adapter import IpAdapter, adapter_config, check_ip_adapter, load_ip_adapter
from .lora import Lora, check_lora, fused_copy, load_lora
from .model_files import load_model
from .pipeline_index import Component, PipelineIndex, class_of_diffusers, read_pipeline_index
from .plain_copy import copied
from .resolve import local_folder, resolve
from .source import Source, check_finite, weights_sha256
from .text_pipeline import load_whole, text_pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_LOG = logging.getLogger(__name__)


def load_source(source: str | Path | DiffusionPipeline, *, lora: Lora | None = None, ip_adapter: IpAdapter | None = None,
                controlnet: Path | None = None, pipeline: Path | None = None) -> Source:  # fmt: skip
    """Load the denoiser of a built-in (``builtin:NAME``), a diffusers pipeline folder, a hub id, or a copy of it from a pipeline object.

    Adapters of a pipeline object are fused into the copy, as is the file ``lora`` of a folder or hub id, whose network gets the
    ``ip_adapter`` too. The ControlNet in the folder ``controlnet`` steers it. Or ``source`` is the folder of a ControlNet, which is loaded
    with the ``pipeline`` that it steers.

    Raises UsageError (no such path or name, an adapter that cannot be fused), ArtifactError (no pipeline in there, pickled, damaged or
    non-finite weights) and EnvironmentProblem (no diffusers, no peft).
    """
    if pipeline is not None:
        return _steering(source, pipeline, [lora, controlnet, ip_adapter])
    if controlnet is not None:
        return _steered(source, controlnet, lora, ip_adapter)
    if not isinstance(source, str | Path):
        if lora is not None:
            raise UsageError("a LoRA file is for a pipeline folder or hub id", "load it into the pipeline object: load_lora_weights(FILE)")
        if ip_adapter is not None:
            raise UsageError("an IP-Adapter's file is for a pipeline folder or hub id",
                             "load it into the pipeline object: load_ip_adapter(DIR, subfolder='', weight_name=FILE)")  # fmt: skip
        return _from_pipeline(source)
    _require_diffusers()
    if lora is not None or ip_adapter is not None:
        return _with_adapters(source, lora, ip_adapter)
    name, root = resolve(source)
    index = read_pipeline_index(root)
    model = load_model(root / index.component, index.model_class)
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
        place=local_folder(source),
    )


def reload_source(origin: Origin, artifact: Path, instead: str | Path | None = None) -> Source:
    """The source that the ``origin`` in an artefact's manifest names, with all that was loaded into it and beside it then.

    It is looked for as seen from the artefact, and where it was; of two, the one that has the same weights is taken. ``instead`` is
    another source, which gets the same things. Raises as ``load_source`` does, naming the artefact.
    """
    adapter = origin.lora
    lora = Lora(Path(_found(adapter, adapter.path, artifact)[0]), adapter.scale) if adapter else None
    added = origin.ip_adapter
    ip_adapter = IpAdapter(Path(_found(added, added.path, artifact)[0]), added.scale) if added else None
    controlnet, pipeline = (Path(_found(part, part.path, artifact)[0]) if part else None for part in (origin.controlnet, origin.pipeline))
    for place in [instead] if instead is not None else _found(origin, origin.reference, artifact):
        try:
            loaded = load_source(place, lora=lora, ip_adapter=ip_adapter, controlnet=controlnet, pipeline=pipeline)
        except UsageError as error:
            if instead is not None:
                raise
            raise UsageError(f"{artifact} was made from '{origin.reference}': {error.message}", error.hint) from error
        if loaded.sha256 == origin.sha256:
            break
    return loaded


def _found(entry: Place, typed: str, artifact: Path) -> list[str | Path]:
    """Where it lies now; what was typed where that is not a path. Raises UsageError when it lies nowhere."""
    expected = places(entry, artifact)
    found: list[str | Path] = [place for place in expected if place.exists()]
    if expected and not found:
        looked = " and ".join(map(str, expected))
        raise UsageError(f"{artifact} was made from '{typed}', which is not there any more: no such path: {looked}", "put it back there")
    return found or [typed]


def module_source(module: torch.nn.Module, scheduler: Any, sample_shape: tuple[int, ...]) -> Source:
    """A source around a copy of a module, without a pipeline; it keeps its configuration, if it has one. Adapters are fused.

    ``sample_shape`` is that of one sample without the batch. Raises UsageError when it is not a shape.
    """
    if not sample_shape or any(not isinstance(size, int) or size < 1 for size in sample_shape):
        raise UsageError(f"sample_shape must be positive whole numbers without the batch, such as (1, 32, 32); it is {sample_shape!r}")
    _check_no_drop_in(module)
    model = fused_copy(module)
    config = _config(model) if hasattr(model, "to_json_string") else _plain_config(model)
    name, own = type(model).__name__, copied(scheduler)
    return Source(
        name=name, reference="", model=model, component="module", scheduler=own, config=config, pipeline_class="",
        sample_shape=sample_shape, sha256="",
    )  # fmt: skip


def _check_no_drop_in(model: Any) -> None:
    """Raise UsageError for a drop-in (engines/dropin): its weights are inside an engine."""
    if getattr(model, "is_drop_in", False):
        what = getattr(model.origin, "path", "an engine")
        raise UsageError(f"the model to quantize is a drop-in that runs {what}: it has no weights", "give the float model it was made from")


def _steered(source: Any, folder: Path, lora: Lora | None, ip_adapter: IpAdapter | None) -> Source:
    """The denoiser of ``source``, whose pipeline has the ControlNet in ``folder``."""
    if not isinstance(source, str | Path):
        raise UsageError("a ControlNet's folder is for a pipeline folder or hub id", "give the pipeline object that has the ControlNet")
    loaded, controlnet = load_source(source, lora=lora, ip_adapter=ip_adapter), load_controlnet(folder)
    record = _beside(folder, weights_sha256(controlnet.state_dict()))
    return replace(loaded, controlnet=controlnet, beside={**loaded.beside, "controlnet": record})


def _steering(source: Any, pipeline: Path, others: Sequence[Any]) -> Source:
    """The ControlNet in the folder ``source``, with the pipeline that it steers."""
    if any(other is not None for other in others):
        raise UsageError("a LoRA, a ControlNet or an IP-Adapter beside the pipeline of a ControlNet changes nothing", "leave that out")
    if not isinstance(source, str | Path) or not is_controlnet(Path(source)):
        raise UsageError(f"--pipeline is the pipeline that a ControlNet steers, and {source} is no folder of one", "leave that out")
    model, base = load_controlnet(Path(source)), load_source(pipeline)
    steered = with_controlnet(text_pipeline(base), model)
    return _checked(
        name=Path(source).expanduser().resolve().name,
        reference=str(source),
        model=model,
        component="controlnet",
        scheduler=base.scheduler,
        config=_config(model),
        pipeline_class=type(steered).__name__,
        sample_shape=base.sample_shape,
        place=local_folder(source),
        pipeline=steered,
        beside={"pipeline": _beside(pipeline, base.sha256)},
    )


def _beside(folder: Path, sha256: str) -> dict[str, Any]:
    place = local_folder(folder)
    return {"path": str(folder), "sha256": sha256} | ({"absolute": absolute_place(place)} if place else {})


def _with_adapters(source: str | Path, lora: Lora | None, ip_adapter: IpAdapter | None) -> Source:
    if lora is not None:
        check_lora(lora)
    if ip_adapter is not None:
        check_ip_adapter(ip_adapter)
    name, root = resolve(source, whole=True)
    pipeline, record = load_whole(root, encodes=ip_adapter is not None), {}
    if lora is not None:
        load_lora(pipeline, _component(pipeline), lora)
        record["lora"] = _adapter_record(lora.path, lora.path, lora.scale)
    if ip_adapter is not None:
        load_ip_adapter(pipeline, ip_adapter)
        record["ip_adapter"] = _adapter_record(ip_adapter.path, ip_adapter.file, ip_adapter.scale)
    return replace(_from_pipeline(pipeline), name=name, reference=str(source), beside=record, place=local_folder(source))


def _adapter_record(given: Path, file: Path, scale: float) -> dict[str, Any]:
    """What a manifest says of an adapter's file."""
    return {"path": str(given), "absolute": absolute_place(given), "scale": scale, "sha256": sha256_file(file)}


def _from_pipeline(pipeline: Any) -> Source:
    class_name = type(pipeline).__name__
    component = _component(pipeline)
    model = getattr(pipeline, component, None)
    scheduler = getattr(pipeline, "scheduler", None)
    if not isinstance(model, torch.nn.Module) or scheduler is None:
        raise UsageError(f"a source is a path, a hub id, a built-in name or a pipeline with a unet or transformer, not a {class_name}")
    _check_no_drop_in(model)
    model = fused_copy(model)
    config = _config(model)
    return _checked(
        name=class_name,
        reference=f"object:{class_name}",
        model=model,
        pipeline=pipeline,
        component=component,
        scheduler=copied(scheduler),
        config=config,
        pipeline_class=class_name,
        sample_shape=_sample_shape(config),
    )


def _component(pipeline: Any) -> Component:
    return "unet" if getattr(pipeline, "unet", None) is not None else "transformer"


def _config(model: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(model.to_json_string())
    # The folder that a model came from is not a property of the model, and would differ from machine to machine.
    config.pop("_name_or_path", None)
    return config | adapter_config(model)


def _plain_config(model: Any) -> dict[str, Any]:
    """What a module of another kind has under ``config``, as far as JSON holds it: one around diffusers' may hand on what that has."""
    found = getattr(model, "config", None)
    plain = found if isinstance(found, Mapping) else {}
    return {name: value for name, value in plain.items() if isinstance(name, str) and _is_json(value)}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _checked(*, reference: str, model: torch.nn.Module, **fields: Any) -> Source:
    state = model.state_dict()
    check_finite(reference, state)
    return Source(reference=reference, model=model, sha256=weights_sha256(state), **fields)


def _load_scheduler(root: Path, index: PipelineIndex) -> Any:
    from diffusers import SchedulerMixin

    scheduler_class = class_of_diffusers(index.scheduler_class, SchedulerMixin, root)
    try:
        return scheduler_class.from_pretrained(root, subfolder="scheduler", local_files_only=True)
    except Exception as error:  # as above
        raise_if_out_of_memory(error, f"loading the {index.scheduler_class} in {root / 'scheduler'}")
        raise ArtifactError(f"cannot load the {index.scheduler_class} in {root / 'scheduler'}: {summarized(error)}") from error


def _sample_shape(config: dict[str, Any]) -> tuple[int, ...]:
    """(C, H, W) as the configuration has it; empty where it does not (FLUX's pipelines choose the size themselves)."""
    channels, size = config.get("in_channels"), config.get("sample_size")
    sizes = [size, size] if isinstance(size, int) else size
    if not isinstance(channels, int) or not isinstance(sizes, list) or not sizes or not all(isinstance(edge, int) for edge in sizes):
        return ()
    return (channels, *sizes)


def _require_diffusers() -> None:
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(f"loading a pipeline needs diffusers: {error}", "pip install diffusers") from None
