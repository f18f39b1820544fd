"""Where calibration data comes from: the project's own sampling loop, or the user's pipeline, with the conditions to sample under."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ...errors import ArtifactError, UsageError
from ...progress import Progress
from ...sources import (
    MODULE_ROUTE,
    GivenPictures,
    IpAdapter,
    Lora,
    Pictures,
    Source,
    asked_beside,
    builtin_prompts,
    prompted_class,
    runs_by_itself,
    takes_prompts,
    text_pipeline,
)
from ..calling import CallForm, OutputForm, from_conditions
from ..config import QuantizeConfig
from .choice import Choice, choose
from .classes import class_space
from .picture_size import PICTURE_SIZE, TEXT_LENGTH
from .pipeline_source import PipelineSource, read_prompts
from .sampling_loop import SamplingLoop
from .trajectories import Answer, Conditions, Model, Trajectories
from .view import AS_IT_IS, View, view_of
from .walk import Walk, try_out


@dataclass(frozen=True)
class Request(GivenPictures):
    """What the user asked of the source and its calibration, as ``quantize`` takes it; None is "not given"."""

    scheduler: Any = None
    sample_shape: tuple[int, ...] | None = None
    blocks: Sequence[str] | None = None
    conditions: Mapping[str, Any] | None = None  # of tensors [P, ...] and constants, in any structure
    null_conditions: Mapping[str, Any] | None = None
    classes: str | Sequence[int] | None = None
    prompts: str | Path | Sequence[str] | None = None
    negative_prompt: str | None = None
    lora: str | Path | None = None
    lora_scale: float = 1.0
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    controlnet: str | Path | None = None
    pipeline: str | Path | None = None
    ip_adapter: str | Path | None = None
    ip_adapter_scale: float = 1.0
    text_length: int | None = None  # in tokens

    @classmethod
    def split(cls, arguments: Mapping[str, Any]) -> tuple[Request, dict[str, Any]]:
        """The request in the keyword arguments of ``quantize``, and the others: options of the configuration."""
        own = {field.name for field in fields(cls)}
        return cls(**{k: v for k, v in arguments.items() if k in own}), {k: v for k, v in arguments.items() if k not in own}

    @property
    def adapter(self) -> Lora | None:
        """The LoRA file to fuse."""
        return None if self.lora is None else Lora(Path(self.lora), self.lora_scale)

    @functools.cached_property
    def given_prompts(self) -> list[str] | None:
        """The prompts, read once. Raises UsageError as ``read_prompts`` does."""
        return None if self.prompts is None else read_prompts(self.prompts)

    def with_own_prompts(self, source: Source) -> Request:
        """With the prompts that a built-in source comes with, where none are given."""
        own = builtin_prompts(source.reference)
        return self if own is None or self.prompts is not None or self.conditions else replace(self, prompts=own)

    @property
    def beside(self) -> dict[str, Any]:
        """Folders beside the source's, and an IP-Adapter, as ``load_source`` takes them."""
        given = {"controlnet": self.controlnet, "pipeline": self.pipeline}
        folders = {name: Path(path) for name, path in given.items() if path is not None}
        adapter = {} if self.ip_adapter is None else {"ip_adapter": IpAdapter(Path(self.ip_adapter), self.ip_adapter_scale)}
        return folders | adapter

    @property
    def picture_size(self) -> dict[str, int]:
        """What was asked of a text pipeline's pictures, in pixels, its videos, in frames, and its text, as arguments of its call."""
        given = {**dict(zip(PICTURE_SIZE, (self.height, self.width, self.frames), strict=True)), TEXT_LENGTH: self.text_length}
        return {name: size for name, size in given.items() if size is not None}


class CalibrationSource(Protocol):
    """Makes trajectories of samples of ``shape`` (without the batch); ``examples`` are conditions [P, ...] as the model gets them."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def examples(self) -> Conditions: ...  # noqa: D102

    @property
    def form(self) -> CallForm | None:
        """How the model is called with them; None: each under its own name."""

    def collect(self, model: Model, seeds: range, progress: Progress, part: slice = slice(None)) -> Trajectories:
        """Trajectories of the float model from these seeds, or ``part`` of them as it would be among all."""

    def final_samples(self, answer: Answer, seeds: range, part: slice, runs: int, output: OutputForm) -> torch.Tensor:
        """Where ``runs`` runs of ``part`` of these seeds end [runs, n, ...], whose network gives ``answer``, in the form of ``output``.

        Raises UsageError where nothing is sampled.
        """

    @property
    def choice(self) -> Choice: ...  # noqa: D102

    def try_out(self, model: Model) -> None:
        """Take first steps with the float model, so that what cannot be sampled is refused before the run. Raises UsageError."""

    def record(self) -> dict[str, Any]:
        """What the manifest says about it."""


@dataclass(frozen=True)
class LoopSource:
    """The project's own loop: unconditional and class-conditional models, and conditions given as tensors."""

    scheduler: Any
    shape: tuple[int, ...]
    config: QuantizeConfig
    examples: Conditions = field(default_factory=dict)
    null_conditions: Conditions | None = None
    classes: list[int] | None = None
    view: View = AS_IT_IS
    form: CallForm | None = None

    def __post_init__(self) -> None:
        self._walk()  # a scheduler that does not fit this loop is refused here

    @property
    def choice(self) -> Choice:
        """As the protocol says."""
        return choose(self.scheduler, self.config.sampler)

    @property
    def _loop(self) -> SamplingLoop:
        return SamplingLoop(
            self.scheduler, self.config.steps, self.shape, self.examples, self.null_conditions, self.config.guidance_scale,
            self.config.sampler, self.view,
        )  # fmt: skip

    def _walk(self) -> Walk:
        return self._loop.walk([torch.Generator().manual_seed(self.config.seed)])

    def try_out(self, model: Model) -> None:
        """All steps of one sample, with the model's output for the first."""
        walk = self._walk()
        x = walk.noise(self.shape)
        with torch.no_grad():
            output = model(walk.input(0, x), torch.tensor(walk.timesteps[:1]), **{k: v[:1] for k, v in self.examples.items()})
        try_out(walk, output, x)

    def collect(self, model: Model, seeds: range, progress: Progress, part: slice = slice(None)) -> Trajectories:
        """As the protocol says."""
        return self._loop.collect(model, seeds, part=part, batch_size=self.config.batch_size, progress=progress)

    def final_samples(self, answer: Answer, seeds: range, part: slice, runs: int, output: OutputForm) -> torch.Tensor:  # noqa: ARG002  it is packed already
        """As the protocol says."""
        return self._loop.final_samples(answer, seeds, runs=runs, part=part)

    def record(self) -> dict[str, Any]:
        """As the protocol says."""
        return {
            "from": "loop",
            "classes": self.classes,
            "guidance_scale": self.config.guidance_scale,
            "scheduler": type(self.choice.scheduler).__name__,
        }


def calibration_source(request: Request, config: QuantizeConfig, source: Source) -> CalibrationSource:
    """Choose what serves the source and what the user asked for, at one size.

    Raises UsageError where the two do not fit: classes for a model without them, guidance for an unconditional model, no prompts.
    """
    guided = config.guidance_scale is not None and config.guidance_scale > 1
    if request.null_conditions is not None and not (request.conditions and guided):
        raise UsageError("null_conditions= are for guidance", "give conditions= and a guidance_scale above 1 with them")
    itself = not request.conditions and runs_by_itself(source)
    if not request.conditions and (others := asked_beside(source)):
        raise UsageError(
            f"{_named(source)} draws from {' and '.join(others)}, which no option gives", MODULE_ROUTE.format(component=source.component)
        )
    if request.picture_size and not itself:
        raise UsageError(
            f"a picture size is given, and {_named(source)} has its own",
            "leave --height, --width and --frames to pipelines that take prompts or pictures",
        )
    pictures = request.pictures
    if pictures and not itself:
        raise UsageError(
            f"pictures are given, and {_named(source)} takes none",
            "leave them out; a module takes what its pipeline makes of them as conditions=",
        )
    if request.conditions:
        return _from_tensors(request, config, source)
    if takes_prompts(source):
        return _from_prompts(request, config, source, pictures)
    if itself and request.classes is None and request.prompts is None and request.negative_prompt is None:
        return PipelineSource.prepare(text_pipeline(source), source.component, [], None, config, request.picture_size, pictures)
    if request.prompts is not None or request.negative_prompt is not None:
        raise UsageError(f"prompts are given, and {_named(source)} takes none", "leave them out; a class-conditional model takes --classes")
    space = class_space(source.model, source.config)
    if space is not None:
        chosen = space.choose(request.classes)
        null = space.null_conditions() if guided else None
        return LoopSource(source.scheduler, _shape(source), config, space.conditions(chosen), null, chosen, _view(source))
    if request.classes is not None:
        raise UsageError(f"classes are given, and {_named(source)} takes none", "leave the classes out")
    if config.guidance_scale is not None:
        raise UsageError(f"a guidance scale is given, and {_named(source)} is unconditional", "leave the guidance scale out")
    return LoopSource(source.scheduler, _shape(source), config, view=_view(source))


def check_prompts(source: Any, request: Request) -> None:
    """Raise UsageError for a text pipeline without prompts where its folder's index says so, before its weights are loaded."""
    place = source if request.pipeline is None else request.pipeline
    given = (request.prompts, request.conditions, request.classes)
    if any(value is not None for value in given) or not isinstance(place, str | Path):
        return
    if kind := prompted_class(place):
        raise _no_prompts(f"a {kind}")


def _no_prompts(named: str) -> UsageError:
    return UsageError(
        f"{named} is calibrated on prompts, and none are given",
        "write typical prompts into a file, one on a line, and give it: --prompts FILE (from Python: prompts=[...])",
    )


def _from_tensors(request: Request, config: QuantizeConfig, source: Source) -> LoopSource:
    assert request.conditions is not None
    if request.classes is not None or request.prompts is not None or request.negative_prompt is not None:
        raise UsageError("give conditions=, or prompts or classes, not both")
    form, conditions = from_conditions(source.model, request.conditions)
    null = None
    if request.null_conditions is not None:
        null_form, null = from_conditions(source.model, request.null_conditions)
        if null_form != form:
            raise UsageError(
                "null_conditions= are not built as conditions= are",
                "give both the same names, structure and constants; only the tensors' values may differ",
            )
    empty = [name for given in (conditions, null or {}) for name, value in given.items() if value.dim() == 0 or len(value) == 0]
    if empty:
        raise UsageError(
            f"no values for the condition {', '.join(empty)}",
            "a condition is a tensor [P, ...] of P ≥ 1 values; dq_deploy.whole_batch(tensor) is one without a batch dimension",
        )
    return LoopSource(source.scheduler, _shape(source), config, conditions, null, form=form, view=_view(source))


def _from_prompts(request: Request, config: QuantizeConfig, source: Source, pictures: Pictures) -> PipelineSource:
    if request.classes is not None:
        raise UsageError(f"classes are given, and {_named(source)} takes prompts", "give --prompts FILE instead")
    prompts = request.given_prompts
    if prompts is None:
        raise _no_prompts(_named(source))
    return PipelineSource.prepare(
        text_pipeline(source), source.component, prompts, request.negative_prompt, config, request.picture_size, pictures
    )


def _view(source: Source) -> View:
    return view_of(source.config.get("_class_name"))


def _shape(source: Source) -> tuple[int, ...]:
    if not source.sample_shape:
        found = ", ".join(f"{name} {source.config.get(name)!r}" for name in ("in_channels", "sample_size"))
        raise ArtifactError(
            f"{source.reference}: the model's configuration gives no sample shape ({found})",
            "from Python: dq_deploy.quantize(module, ..., scheduler=scheduler, sample_shape=(C, H, W))",
        )
    return source.sample_shape


def _named(source: Source) -> str:
    return f"a {source.pipeline_class}" if source.pipeline_class else f"the model {source.name}"
