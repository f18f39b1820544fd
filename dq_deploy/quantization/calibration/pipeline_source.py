"""Calibration by a pipeline that takes prompts, pictures or both: it samples them itself, and its denoiser's calls become trajectories."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...artifacts import sha256_json
from ...errors import EnvironmentProblem, UsageError, beside, raise_if_out_of_memory
from ...progress import Progress
from ...sources import MODULE_ROUTE, Pictures, check_adapter_pictures, check_complete, for_pictures
from ...sources.quiet import no_warnings
from ..calling import CallForm, OutputForm, described
from ..config import QuantizeConfig
from .choice import Choice, choose, kept
from .given_pictures import check_strength, fitted, with_own_strength, with_skipped_rows
from .picture_size import PICTURE_SIZE, SIZE_HINT, TEXT_LENGTH, check_size, own_size, speaks_of_size
from .recording import Call, FirstCallError, batch_of, by_seed, check_call, first_call, read_call, recording, streams, varying_names
from .standing_in import standing_in
from .trajectories import Answer, Conditions, Model, Trajectories, assemble, turns
from .walk import own_noise

_PICTURES = ("image", "images", "mask_image", "control_image", "last_image", "video", "mask", "control_video", "initial_audio_waveforms")
"""What pipelines are conditioned on beside a prompt."""
_OPTIONS = "--image, --mask or --control-image"
_ALL_STEPS = {"strength": 1.0}
Shapes = Mapping[str, tuple[int, ...]]


def read_prompts(prompts: str | Path | Sequence[str]) -> list[str]:
    """Prompts from a file (UTF-8, one on a line, empty lines skipped) or a list.

    Raises UsageError for a file that is missing, not UTF-8 or without prompts, and for anything but text in a list.
    """
    if isinstance(prompts, str | Path):
        try:
            lines = Path(prompts).read_text(encoding="utf-8-sig").split("\n")  # splitlines would cut at U+2028 and the like too
        except UnicodeDecodeError as error:
            raise UsageError(f"{prompts} is not UTF-8 text: {error.reason} at byte {error.start}", "save it as UTF-8") from None
        except OSError as error:
            raise UsageError(f"cannot read the prompts in {prompts}: {error.strerror}", _where(prompts, error)) from None
        found, where = [line.strip() for line in lines if line.strip()], f"in {prompts}"
    else:
        wrong = [p for p in prompts if not isinstance(p, str)]
        if wrong:
            raise UsageError(f"a prompt is text, not {wrong[0]!r}")
        found, where = list(prompts), "given"
    if not found:
        raise UsageError(f"no prompts {where}", "give one prompt at least, on a line of its own")
    return found


def _where(prompts: str | Path, error: OSError) -> str:
    text = "a file of prompts has one on each line"
    return f"{beside(prompts)}; {text}" if isinstance(error, FileNotFoundError) else text


@dataclass(frozen=True)
class Subject:
    """What one run draws: its prompt, None where the pipeline takes none, and the numbers of its pictures by kind."""

    prompt: str | None
    pictures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PipelineSource:
    """Runs a copy of the user's pipeline over the prompts, dealt to the seeds (see ``calibration.deal``), and over ``pictures`` likewise.

    ``parameters`` are what the pipeline's call names the kinds of pictures, and ``one_by_one`` says that it takes one of each at a time.
    ``shape`` and ``examples`` are of the denoiser's sample and conditions as the pipeline makes them; ``halves`` is how many samples of
    the denoiser's batch belong to one prompt.
    """

    pipeline: Any
    component: str
    choice: Choice
    prompts: list[str]
    config: QuantizeConfig
    options: dict[str, Any]
    shape: tuple[int, ...] = ()
    examples: Conditions = field(default_factory=dict)
    halves: int = 1
    form: CallForm | None = None
    pictures: Pictures = field(default_factory=Pictures)
    parameters: Mapping[str, str] = field(default_factory=dict)
    one_by_one: bool = False
    picture_size: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def prepare(cls, pipeline: Any, component: str, prompts: list[str], negative_prompt: str | None, config: QuantizeConfig,
                picture_size: Mapping[str, int] | None = None, pictures: Pictures | None = None) -> PipelineSource:  # fmt: skip
        """Check what the pipeline takes, and run it up to its denoiser's first call; without ``prompts`` for one that draws from pictures.

        A pipeline that cannot begin with the ``pictures`` makes way for one of the same parts that can (``sources.for_pictures``). Raises
        UsageError where it refuses.
        """
        pictures, size = pictures or Pictures(), dict(picture_size or {})
        check_adapter_pictures(pipeline, component, pictures)
        parameters: dict[str, str] = {}
        if pictures:
            pipeline, parameters = for_pictures(pipeline, component, pictures)
            pictures, size = fitted(type(pipeline), pictures, size)
            pictures = with_own_strength(type(pipeline), pictures)
            check_strength(pictures.strength, config.steps)
        else:
            check_complete(type(pipeline))
        taken = inspect.signature(type(pipeline).__call__).parameters
        if TEXT_LENGTH in size and TEXT_LENGTH not in taken:
            raise UsageError(f"a {type(pipeline).__name__} fixes the length of its text", "leave --tokens out")
        drawn_at = size if not pictures else {name: value for name, value in size.items() if name in taken}
        requested = {"guidance_scale": config.guidance_scale, "negative_prompt": negative_prompt, **drawn_at}
        options = {name: value for name, value in requested.items() if value is not None}
        own_strength = ["strength"] if pictures.strength is not None else []
        for name in [*options, *own_strength, "generator", "num_inference_steps", "output_type"]:
            if name not in taken:
                raise UsageError(f"a {type(pipeline).__name__} takes no {name.replace('_', ' ')}", "leave that out")
        own, choice = pipeline.scheduler, choose(pipeline.scheduler, config.sampler)
        made = functools.partial(
            cls, component=component, prompts=prompts, config=config, options=options, pictures=pictures, parameters=parameters,
            picture_size=size,
        )  # fmt: skip
        try:
            return made(_with_scheduler(pipeline, choice), choice=choice)._prepared()
        except UsageError as error:
            if type(choice.scheduler) is type(own):
                raise
            # Some pipelines ask of their scheduler what DDIM does not have (LCM's: a number of original steps).
            choice = kept(own, f"the pipeline refuses DDIM: {error.message}")
            return made(_with_scheduler(pipeline, choice), choice=choice)._prepared()

    def _prepared(self) -> PipelineSource:
        """With what is known at the denoiser's first call."""
        first = self._first_call(1)
        alone = bool(self.pictures) and not self._takes_several(first)
        arguments, form, count = self._form(first, alone=alone)
        call = read_call(self.model, arguments, form)
        shape = tuple(call.sample.shape[1:])
        asked = {name: self.options[name] for name in PICTURE_SIZE if name in self.options}
        check_size(self.pipeline, self.component, shape, asked, beside=bool(self.pictures.image))
        halves = len(call.sample) // count
        return replace(self, shape=shape, examples=call.conditions, halves=halves, form=form, one_by_one=alone)

    def _takes_several(self, first: dict[str, Any]) -> bool:
        """Whether the pipeline takes a list of pictures, one for each prompt, where it calls its denoiser so for one.

        Many of those for videos do not, and FLUX.2 takes all of a list for each prompt.
        """
        try:
            more = self._first_call(2)
        except UsageError:
            return False
        one, two = (next(iter(arguments.values())) for arguments in (first, more))
        return len(two) == 2 * len(one) and two[0].shape == one[0].shape

    def _form(self, arguments: dict[str, Any], *, alone: bool) -> tuple[dict[str, Any], CallForm, int]:
        """Arguments of the denoiser's first call, the form of its calls, and how many prompts they were made for.

        One prompt tells most; where a tensor may have one entry for the whole batch or several for each sample, two tell.
        """
        found = described(self.model, arguments, batch=batch_of(arguments))
        if alone or not found.unsettled:
            return arguments, found.form, 1
        more = self._first_call(2)
        settled = described(self.model, more, batch=batch_of(more), before=(found.unsettled, batch_of(arguments)))
        return more, settled.form, 2

    def shapes_of(self, prompt: str) -> Shapes:
        """Of what the denoiser gets at its first call with this prompt, by input."""
        arguments = self._first_call(1, replace(self._subject(0, 1), prompt=prompt))
        call = read_call(self.model, arguments, described(self.model, arguments, batch=batch_of(arguments)).form)
        return {name: tuple(value.shape) for name, value in call.conditions.items()}

    def with_prompts(self, prompts: list[str]) -> PipelineSource:
        """The same for other prompts."""
        return replace(self, prompts=prompts)._prepared()

    def _first_call(self, count: int, subject: Subject | None = None) -> dict[str, Any]:
        subject = subject or self._subject(0, 1)
        try:
            with no_warnings(), first_call(self.model):  # the run itself has them too
                self._run([subject] * count, [self.config.seed] * count)
        except FirstCallError as first:
            return first.arguments
        raise UsageError(f"a {type(self.pipeline).__name__} ran without calling its {self.component}")

    def _subject(self, number: int, count: int) -> Subject:
        """What one of ``count`` runs draws."""
        return Subject(
            self.prompts[int(turns(len(self.prompts), count)[number])] if self.prompts else None,
            self.pictures.chosen(lambda size: int(turns(size, count)[number])),
        )

    def try_out(self, model: Model) -> None:  # noqa: ARG002  as below
        """The pipeline's own first step, up to the call of its denoiser that follows."""
        timesteps: list[float] = []

        def on_call(call: Call) -> None:
            timesteps.append(call.timestep)
            if call.timestep != timesteps[0]:
                raise _EnoughError

        with suppress(_EnoughError), torch.no_grad(), recording(self.model, on_call, self.form):
            self._run([self._subject(0, 1)], [self.config.seed])

    @property
    def model(self) -> torch.nn.Module:
        """The denoiser."""
        model: torch.nn.Module = getattr(self.pipeline, self.component)
        return model

    @torch.no_grad()
    def collect(self, model: Model, seeds: range, progress: Progress, part: slice = slice(None)) -> Trajectories:  # noqa: ARG002  the pipeline runs its own
        """Trajectories of the pipeline's own denoiser, as many prompts at a time as fill a batch."""
        at_once = 1 if self.one_by_one else max(1, self.config.batch_size // self.halves)
        dealt, seeds = self._dealt(seeds)[part], seeds[part]
        parts: list[Trajectories] = []
        runs = 2 if self._skips_steps else 1
        with progress("calibration trajectories", -(-len(seeds) // at_once) * self.config.steps * runs) as advance:
            for start in range(0, len(seeds), at_once):
                chosen = slice(start, start + at_once)
                parts.append(self._trajectories(dealt[chosen], seeds[chosen], advance))
        return _joined(parts)

    @torch.no_grad()
    def final_samples(self, answer: Answer, seeds: range, part: slice, runs: int, output: OutputForm) -> torch.Tensor:
        """As the protocol says: the pipeline's latents."""
        if self.one_by_one:
            raise UsageError(f"a {type(self.pipeline).__name__} draws one picture at a time, and runs are compared side by side")
        subjects, chosen = self._dealt(seeds)[part], seeds[part]
        with standing_in(self.model, answer, self.form, output, runs=runs, seeds=len(chosen)):
            made = self._run(subjects * runs, [*chosen] * runs)
        final = made[0] if isinstance(made, tuple | Mapping) or hasattr(made, "to_tuple") else made
        final = torch.stack(final) if isinstance(final, list) and final and isinstance(final[0], torch.Tensor) else final
        if not isinstance(final, torch.Tensor) or len(final) != runs * len(chosen):
            raise UsageError(f"a {type(self.pipeline).__name__} gives no latents")
        ends: torch.Tensor = final.detach().float().cpu().unflatten(0, (runs, -1))
        return ends

    def record(self) -> dict[str, Any]:
        """What the manifest says: the prompts by number and hash, since they may be private."""
        return {
            "from": "pipeline",
            **({"prompts": {"count": len(self.prompts), "sha256": sha256_json({"prompts": self.prompts})}} if self.prompts else {}),
            "scheduler": type(self.pipeline.scheduler).__name__,
            "samples_per_prompt": self.halves,
            **self.options,
            **({"pipeline": type(self.pipeline).__name__, "pictures": self.pictures.record() | {"sha256": self.pictures.sha256()}}
               if self.pictures else {}),
        }  # fmt: skip

    @property
    def details(self) -> dict[str, Any]:
        """What whoever draws with the model needs to know again."""
        size = {"picture_size": dict(self.picture_size)} if self.picture_size else {}
        return size | ({"pictures": self.pictures.record()} if self.pictures else {})

    @property
    def _skips_steps(self) -> bool:
        return self.pictures.strength is not None and self.pictures.strength < 1

    def _dealt(self, seeds: Sequence[int]) -> list[Subject]:
        return [self._subject(number, len(seeds)) for number in range(len(seeds))]

    def _trajectories(self, subjects: list[Subject], seeds: Sequence[int], advance: Callable[[int], None]) -> Trajectories:
        """Every step has a row: those that the strength skips are met at strength 1, by the same seeds."""
        own = self._recorded(subjects, seeds, advance)
        return with_skipped_rows(own, self._recorded(subjects, seeds, advance, **_ALL_STEPS)) if self._skips_steps else own

    def _recorded(self, subjects: list[Subject], seeds: Sequence[int], advance: Callable[[int], None], **options: Any) -> Trajectories:
        calls: list[Call] = []

        def on_call(call: Call) -> None:
            check_call(call, seeds)
            if not calls or call.timestep != calls[-1].timestep:
                advance(1)
            calls.append(call)

        with recording(self.model, on_call, self.form):
            self._run(subjects, seeds, **options)
        found = streams(calls)
        count = len(seeds)
        visited = [call.timestep for call in found[0].calls]
        samples = [by_seed([stream.calls[i].sample for stream in found], count) for i in range(len(visited))]
        outputs = [by_seed([_output(stream.calls[i]) for stream in found], count) for i in range(len(visited))]
        conditions = {name: by_seed([stream.conditions[name] for stream in found], count) for name in found[0].conditions}
        changing = varying_names(found[0].calls[0].form, list(found[0].calls[0].conditions))
        varying = {
            name: [by_seed([stream.calls[i].conditions[name] for stream in found], count) for i in range(len(visited))] for name in changing
        }
        return assemble(visited, samples, outputs, conditions, len(samples[0]) // count, varying)

    def _run(self, subjects: list[Subject], seeds: Sequence[int], **more: Any) -> Any:
        """What the pipeline returns, its latents; ``more`` are arguments that go before its own."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        own_noise(self.pipeline.scheduler, seeds)
        options = {k: [v] * len(subjects) if k == "negative_prompt" else v for k, v in self.options.items()}
        options |= {"prompt": [subject.prompt for subject in subjects]} if self.prompts else {}
        options |= own_size(self.pipeline, self.component)
        options |= self.pictures.arguments(self.parameters, [subject.pictures for subject in subjects]) | more
        try:
            return self.pipeline(num_inference_steps=self.config.steps, generator=generators, output_type="latent", **options)
        except NameError as error:  # of a package that diffusers imports where it is there, and uses anyway (Wan's ftfy)
            raise EnvironmentProblem(f"the {type(self.pipeline).__name__} needs {error.name}", f"pip install {error.name}") from error
        except (ValueError, TypeError, RuntimeError, AssertionError, AttributeError, LookupError, ArithmeticError) as error:
            raise_if_out_of_memory(error)
            reason = " ".join(str(error).split())[:300]
            reason = reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
            what = f"{len(subjects)} {'prompts' if self.prompts else 'pictures'}"
            raise UsageError(
                f"the {type(self.pipeline).__name__} refuses to sample {what} in {self.config.steps} steps: {reason}",
                self._way_on(reason),
            ) from error

    def _way_on(self, reason: str) -> str:
        """What to do where the pipeline refuses."""
        taken = inspect.signature(type(self.pipeline).__call__).parameters
        if speaks_of_size(reason) and any(name in taken for name in PICTURE_SIZE):
            return SIZE_HINT
        given = set(self.parameters.values())
        if others := [name for name in taken if name in _PICTURES and name not in given]:
            return f"it takes {', '.join(others)} too; where that is no {_OPTIONS}, " + MODULE_ROUTE.format(component=self.component)
        first = "prompt" if self.prompts else "image"
        return f"try it in diffusers first: pipeline({first}=[...], generator=[...], num_inference_steps=..., output_type='latent')"


class _EnoughError(Exception):
    """Ends a pipeline's run when its first step is taken."""


def _with_scheduler(pipeline: Any, choice: Choice) -> Any:
    """A copy of the pipeline with the scheduler of the calibration."""
    pipeline = copy.copy(pipeline)
    pipeline.register_modules(scheduler=choice.scheduler)
    return pipeline


def _output(call: Call) -> torch.Tensor:
    assert call.output is not None
    return call.output


def _joined(parts: list[Trajectories]) -> Trajectories:
    """Trajectories of several runs as one. Raises UsageError when the runs differ in more than their prompts."""
    first = parts[0]
    for other in parts[1:]:
        shapes, others = ({name: value.shape[1:] for name, value in p.given(0).items()} for p in (first, other))
        if shapes != others or other.per_seed != first.per_seed or not torch.equal(other.timesteps, first.timesteps):
            raise UsageError(
                "the pipeline calls its model in another way for other prompts", "choose prompts that it pads to one length, and one kind"
            )
    return Trajectories(
        first.timesteps,
        torch.cat([p.samples for p in parts], dim=1),
        torch.cat([p.outputs for p in parts], dim=1),
        {name: torch.cat([p.conditions[name] for p in parts]) for name in first.conditions},
        first.per_seed,
        {name: torch.cat([p.varying[name] for p in parts], dim=1) for name in first.varying},
    )
