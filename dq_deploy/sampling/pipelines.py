"""Drawing with the source's own pipeline, where prompts, text encoders and a decoder belong to a picture: only the denoiser changes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..artifacts import Artifact
from ..errors import UsageError
from ..quantization.calibration.classes import CLASS_INPUT
from ..quantization.calibration.given_pictures import check_strength, fitted
from ..quantization.calibration.picture_size import own_size
from ..quantization.calibration.pipeline_source import read_prompts
from ..quantization.calibration.walk import own_noise
from ..sources import (
    Pictures,
    Source,
    builtin_prompts,
    check_adapter_pictures,
    for_pictures,
    picture_alone,
    text_pipeline,
)
from ..sources.pictures import flags, words
from .classes import conditioning_of, guidance_of
from .grid import Images
from .request import Drawing, Prompts
from .schedulers import calibrated_scheduler, calibrated_steps
from .seeds import generators


@dataclass(frozen=True)
class Wish:
    """What a pipeline will draw: ``subjects`` in turn, each passed as ``parameter``, ``pictures`` likewise, and ``options`` of its call."""

    parameter: str | None
    subjects: list[Any]
    options: dict[str, Any] = field(default_factory=dict)
    pictures: Pictures = field(default_factory=Pictures)
    picture_parameters: Mapping[str, str] = field(default_factory=dict)

    def subject(self, number: int) -> Any:
        """Of the picture with this number."""
        return self.subjects[number % len(self.subjects)]

    def of(self, number: int) -> dict[str, Any]:
        """Arguments of the call that draws this picture."""
        subject = {self.parameter: [self.subject(number)]} if self.parameter else {}
        chosen = self.pictures.chosen(lambda size: number % size)
        return {**subject, **self.options, **self.pictures.arguments(self.picture_parameters, [chosen])}


def wish(artifact: Artifact, drawing: Drawing) -> Wish:
    """What to draw with the pipeline of an artefact: prompts, classes (all by default), or whatever it draws; guided as calibrated.

    Raises UsageError: no prompts, no pictures, or what the model does not take.
    """
    pictures = _pictures(artifact, drawing)
    if from_picture_alone(artifact):
        return _without_prompt(artifact, drawing, pictures)
    if not conditions(artifact):
        conditioning = conditioning_of(artifact, drawing.classes, drawing.guidance_scale)
        if conditioning is None:
            return Wish(None, [], {**drawing.picture_size})
        scale = conditioning.guidance_scale
        return Wish(
            CLASS_INPUT, list(conditioning.labels), {**({} if scale is None else {"guidance_scale": scale}), **drawing.picture_size}
        )
    _refuse_classes(drawing)
    prompts = prompts_of(artifact, drawing)
    if prompts is None:
        raise UsageError(no_prompts(artifact), "--prompts FILE: a prompt on each line, drawn in turn")
    negative = None if drawing.negative_prompt is None else [drawing.negative_prompt]
    size = _size(artifact, drawing)
    options: dict[str, Any] = {"guidance_scale": guidance_of(artifact, drawing.guidance_scale), "negative_prompt": negative, **size}
    return Wish("prompt", read_prompts(prompts), {name: value for name, value in options.items() if value is not None}, pictures)


def prompts_of(artifact: Artifact, drawing: Drawing | None) -> Prompts | None:
    """The prompts that were given, or those that the built-in source of an artefact comes with."""
    given = drawing.prompts if drawing else None
    return builtin_prompts(artifact.details.source.reference if artifact.details.source else None) if given is None else given


def _without_prompt(artifact: Artifact, drawing: Drawing, pictures: Pictures) -> Wish:
    _refuse_classes(drawing)
    if drawing.prompts is not None or drawing.negative_prompt is not None:
        raise UsageError("a prompt is given, and the model takes none", "leave that out")
    guidance = {} if drawing.guidance_scale is None else {"guidance_scale": drawing.guidance_scale}
    return Wish(None, [], {**guidance, **_size(artifact, drawing)}, pictures)


def _refuse_classes(drawing: Drawing) -> None:
    if drawing.classes is not None:
        raise UsageError("classes are given, and the model takes none", "leave that out")


def _size(artifact: Artifact, drawing: Drawing) -> dict[str, int]:
    """What the graph's shapes were made for, or one of those that it takes."""
    return {**{str(name): value for name, value in artifact.details.picture_size.items()}, **drawing.picture_size}


def from_picture_alone(artifact: Artifact) -> bool:
    """Whether its pipeline takes a picture and no prompt."""
    return artifact.details.pictures is not None and picture_alone(artifact.details.pipeline_class)


def _pictures(artifact: Artifact, drawing: Drawing) -> Pictures:
    """Those to draw from, by default at the calibration's strength.

    Raises UsageError where they are not of the calibration's kinds, and where that leaves no step.
    """
    pictures, calibrated = drawing.pictures, artifact.details.pictures
    if pictures and calibrated is None:
        raise UsageError("pictures are given, and the model was calibrated without", "leave them out; or quantize with --image")
    if calibrated is None:
        return pictures
    if missing := [name for name in calibrated.kinds if name not in pictures.names]:
        raise UsageError(no_pictures(artifact, missing), f"give {flags(missing)}")
    if more := [name for name in pictures.names if name not in calibrated.kinds]:
        raise UsageError(f"{words(more)} given, and {artifact.path} was calibrated without", "leave that out")
    found = replace(pictures, strength=calibrated.strength) if pictures.strength is None else pictures
    check_strength(found.strength, calibrated_steps(artifact) if drawing.steps is None else drawing.steps)
    return found


def no_pictures(artifact: Artifact, missing: Sequence[str]) -> str:
    """What is missing."""
    return f"{artifact.path} draws from {words(missing)}, and none is given"


def no_prompts(artifact: Artifact) -> str:
    """What is missing."""
    return f"{artifact.path} draws what a prompt says, and none was given"


@dataclass(frozen=True)
class PipelineDrawing:
    """Everything that must be the same for two denoisers whose pictures are compared. A picture at a time: these models are large."""

    pipeline: Any
    component: str
    n: int
    seed: int
    steps: int
    wish: Wish

    @property
    def calls(self) -> int:
        """Passes through the denoiser that all pictures take, at one a step."""
        return self.n * self.steps

    @property
    def labels(self) -> list[int] | None:
        """Class of every picture."""
        return self._subjects(CLASS_INPUT)

    @property
    def prompts(self) -> list[str] | None:
        """Prompt of every picture."""
        return self._subjects("prompt")

    @property
    def guidance_scale(self) -> float | None:
        """None for the pipeline's own."""
        return self.wish.options.get("guidance_scale")

    def _subjects(self, parameter: str) -> list[Any] | None:
        return [self.wish.subject(number) for number in range(self.n)] if self.wish.parameter == parameter else None

    def __call__(self, model: Any) -> Images:
        """[n, H, W, C] in [0, 1], or videos [n, F, H, W, C]. Raises UsageError where the pipeline refuses."""
        pipeline = copy.copy(self.pipeline)
        setattr(pipeline, self.component, model)
        return np.concatenate([self._picture(pipeline, number) for number in range(self.n)])

    def _picture(self, pipeline: Any, number: int) -> Images:
        asked = self.wish.of(number)
        generator = generators(self.seed, range(number, number + 1))
        own_noise(pipeline.scheduler, [own.initial_seed() for own in generator])
        try:
            drawn = pipeline(**asked, generator=generator, num_inference_steps=self.steps, output_type="np")
        except (ValueError, TypeError, NotImplementedError, AttributeError, LookupError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:300]
            name = type(pipeline).__name__
            raise UsageError(
                f"the {name} refuses to draw in {self.steps} steps: {reason}", "try it in diffusers first, with the same arguments"
            ) from error
        return drawn.images if "images" in drawn else np.asarray(drawn.frames)


def pipeline_drawing(artifact: Artifact, source: Source, drawing: Drawing, wishes: Wish) -> PipelineDrawing:
    """The pipeline of ``source`` with the scheduler of the calibration, which took as many ``steps`` as are taken by default.

    Raises UsageError for an option that the pipeline does not take, and as ``text_pipeline`` does.
    """
    pipeline, steps = text_pipeline(source), calibrated_steps(artifact) if drawing.steps is None else drawing.steps
    if wishes.pictures:
        pipeline, wishes = _from_pictures(pipeline, source.component, wishes)
    taken = inspect.signature(type(pipeline).__call__).parameters
    if foreign := [name.replace("_", " ") for name in wishes.of(0) if name not in taken]:
        raise UsageError(f"a {type(pipeline).__name__} takes no {' and no '.join(foreign)}", "leave that out")
    pipeline.register_modules(scheduler=calibrated_scheduler(artifact))
    wishes = replace(wishes, options={**wishes.options, **own_size(pipeline, source.component)})
    return PipelineDrawing(pipeline, source.component, drawing.n, drawing.seed, steps, wishes)


def _from_pictures(pipeline: Any, component: str, wishes: Wish) -> tuple[Any, Wish]:
    """The pipeline that begins with the pictures, which have the size of the calibration's."""
    check_adapter_pictures(pipeline, component, wishes.pictures)
    pipeline, parameters = for_pictures(pipeline, component, wishes.pictures)
    size: dict[str, int] = {name: wishes.options[name] for name in ("height", "width") if name in wishes.options}
    pictures, _ = fitted(type(pipeline), wishes.pictures, size)
    taken = inspect.signature(type(pipeline).__call__).parameters
    options = {name: value for name, value in wishes.options.items() if name not in size or name in taken}
    return pipeline, replace(wishes, options=options, pictures=pictures, picture_parameters=parameters)


def needs_pipeline(artifact: Artifact) -> str | None:
    """Why the project's own loop over pixels does not draw what a denoiser does; None where it does."""
    if others := conditions(artifact):
        return f"takes {', '.join(others)}"
    shape = artifact.details.sample_shape
    return None if len(shape) == 3 and shape[0] in (1, 3) else f"works on samples of shape {shape}"


def conditions(artifact: Artifact) -> list[str]:
    """What the model takes beside sample, timestep and class: embeddings of prompts."""
    return [name for name in artifact.details.input_names[2:] if name != CLASS_INPUT]
