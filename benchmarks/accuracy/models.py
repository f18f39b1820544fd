"""The models of the comparison: their float networks, and what they are drawn under."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch

from dq_deploy.artifacts import sha256_json
from dq_deploy.errors import UsageError
from dq_deploy.quantization.calibration.classes import CLASS_INPUT, class_space
from dq_deploy.quantization.calibration.schedules import plain_config
from dq_deploy.quantization.calling import TIMESTEP, CallForm, timestep_of
from dq_deploy.quantization.graph.positional import input_names
from dq_deploy.sources import Source, copied, load_source, weights_sha256
from dq_deploy.sources.lora import fused_copy

from .drawing import Array, Denoiser, as_pictures
from .made import is_function, make
from .prompted import GUIDANCE_SCALES, Prompted
from .settings import Family

Dataset = Literal["fashion-mnist"]
DATASETS: dict[str, Dataset] = {f"builtin:fashion-mnist-{name}": "fashion-mnist" for name in ("unet", "dit", "text")}
"""Model → the data that it was trained on; other models have none, and then no features to be judged by."""


@dataclass(frozen=True)
class Reference:
    """A float model. Conditions are dealt evenly: sample i gets value i mod P.

    Guidance would extrapolate between two forwards, and so judge the quantizer by a choice of the user: only a text pipeline, ``prompted``,
    is drawn with it. ``given`` are conditions [P, ...] to calibrate under and ``judged`` those of the pictures, where the source has any.
    """

    source: Source
    given: Mapping[str, torch.Tensor] = field(default_factory=dict)
    judged: Mapping[str, torch.Tensor] = field(default_factory=dict)
    declared: Family | None = None
    prompted: Prompted | None = None

    @property
    def family(self) -> Family:
        """Which layer names to expect."""
        return self.declared or ("transformer" if self.source.component == "transformer" else "unet")

    @property
    def _condition_names(self) -> list[str]:
        return list(self.given) or ([CLASS_INPUT] if self.classes else [])

    @cached_property
    def input_names(self) -> list[str]:
        """Names of the forward's inputs in their order: the sample's, the timestep, the conditions if there are any."""
        return input_names(self.source.model, self._condition_names)

    @cached_property
    def _form(self) -> CallForm:
        return self.prompted.form if self.prompted else CallForm.plain(self.source.model, self._condition_names)

    @cached_property
    def classes(self) -> int:
        """Number of classes of a model of diffusers, 0 for one without. Raises UsageError for a model that needs other conditions."""
        parameters = list(inspect.signature(self.source.model.forward).parameters.values())
        needed = {p.name for p in parameters[1:] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
        needed -= {timestep_of(self.source.model), CLASS_INPUT, *self.given}
        if needed:
            raise UsageError(
                f"{self.source.reference} needs {', '.join(sorted(needed))}: models that take classes or nothing are compared as they are",
                "write a function that returns the model with its conditions: --source FILE.py:FUNCTION (benchmarks/accuracy/README.md)",
            )
        space = None if self.given else class_space(self.source.model, self.source.config)
        return space.count if space else 0

    def conditions(self, numbers: range) -> dict[str, torch.Tensor]:
        """Conditions [n, ...] of the calibration samples with these numbers."""
        return self._dealt(self.given, numbers)

    def held_out(self, numbers: range) -> dict[str, torch.Tensor]:
        """Conditions [n, ...] of the pictures with these numbers."""
        return self._dealt(self.judged or self.given, numbers)

    def _dealt(self, pool: Mapping[str, torch.Tensor], numbers: range) -> dict[str, torch.Tensor]:
        if not self.given:
            return {CLASS_INPUT: torch.tensor([number % self.classes for number in numbers])} if self.classes else {}
        return {name: values[torch.tensor(numbers) % len(values)] for name, values in pool.items()}

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        """The float model's output."""
        # torch.export takes the batch of each input for a size of its own, which a text's mask does not go with.
        alike = {name: value.reshape(sample.shape[0], *value.shape[1:]) for name, value in conditions.items()}
        output: Any = self._form.call(self.source.model, {self.input_names[0]: sample, TIMESTEP: timestep, **alike})
        return output if isinstance(output, torch.Tensor) else output[0]

    def guided(self, denoiser: Denoiser) -> Denoiser:
        """What a step is taken with, of a denoiser of this model: its answer, or of a text pipeline that under guidance."""
        return self.prompted.guided(denoiser) if self.prompted else denoiser

    def pictures(self, samples: Array) -> Array:
        """Samples as pictures [n, C, H, W] in [0, 1]."""
        return as_pictures(self.prompted.decoded(samples) if self.prompted else samples)

    def classes_asked(self, count: int) -> torch.Tensor | None:
        """The class [n] that each of the first pictures is to show, by its prompt; None without prompts."""
        return self.prompted.classes[torch.arange(count) % len(self.prompted.classes)] if self.prompted else None

    def quantize_arguments(self) -> dict[str, Any]:
        """What ``dq_deploy.quantize`` gets to quantize this model."""
        if self.source.place is not None or not is_function(self.source.reference):
            prompts = {"prompts": self.prompted.prompts, "guidance_scale": self.prompted.guidance_scale} if self.prompted else {}
            return {"source": self.source.reference, **prompts}
        return {
            "source": self.source.model,
            "scheduler": self.source.scheduler,
            "sample_shape": self.source.sample_shape,
            "conditions": dict(self.given) or None,
        }


def load_reference(model: str, device: torch.device | str = "cpu") -> Reference:
    """Load a float model by built-in name, path, hub id, or a function that makes it. Raises as ``load_source`` and ``make`` do."""
    if is_function(model):
        made = make(model)
        network, scheduler, shape = fused_copy(made["model"].eval()), copied(made["scheduler"]), tuple(made["sample_shape"])
        given, judged = made.get("conditions") or {}, made.get("held_out") or {}
        # Figures are of all of it: a function may give the same weights with another scheduler tomorrow, where a folder is one thing.
        values = {f"{kind}.{name}": v for kind, pool in (("given", given), ("judged", judged)) for name, v in pool.items()}
        drawn = [type(scheduler).__name__, plain_config(scheduler), list(shape), weights_sha256(values)]
        name, sha256 = type(network).__qualname__, sha256_json([weights_sha256(network.state_dict()), *drawn])
        source = Source(name=name, reference=model, model=network, component="module", scheduler=scheduler, config={"_class_name": name},
                        pipeline_class="", sample_shape=shape, sha256=sha256)  # fmt: skip
        reference = Reference(source, given, judged, made.get("family"))
    else:
        reference = _with_prompts(load_source(model)) if model in GUIDANCE_SCALES else Reference(load_source(model))
    reference.source.model.to(device)
    return reference


def _with_prompts(source: Source) -> Reference:
    prompted = Prompted.of(source)
    source = replace(source, sha256=sha256_json([source.sha256, prompted.sha256]))
    return Reference(source, prompted.given, prompted.judged, prompted=prompted)
