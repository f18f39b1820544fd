"""Text pipelines of the comparison: prompts as conditions of the denoiser, guidance, and latents as pictures.

What is judged was drawn from prompts that no method was calibrated on. Its guidance is the pipeline's own, and part of what is judged: a
picture without it shows little of its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dq_deploy.artifacts import sha256_json
from dq_deploy.progress import silent
from dq_deploy.quantization.calibration.pipeline_source import read_prompts
from dq_deploy.quantization.calibration.source import Request, calibration_source
from dq_deploy.quantization.calling import CallForm
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.sources import Source, builtin_prompts, text_pipeline, weights_sha256

from .drawing import Array, Denoiser

GUIDANCE_SCALES = {"builtin:fashion-mnist-text": 2.5}
"""Text pipelines that are compared, and the guidance at which each is calibrated and drawn."""
HELD_OUT = 100
_SEED = 4_000_000
_DECODED_AT_ONCE = 64

Conditions = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Prompted:
    """A pipeline with its prompts: ``given`` and ``judged`` are their conditions [P, ...], ``null`` those of no prompt [1, ...].

    ``classes`` [P] are of what the judged prompts ask for.
    """

    pipeline: Any
    form: CallForm
    guidance_scale: float
    prompts: list[str]
    given: Conditions
    judged: Conditions
    null: Conditions
    classes: torch.Tensor

    @classmethod
    def of(cls, source: Source) -> Prompted:
        """With a built-in's own prompts to calibrate with, and captions as its training made them to judge by."""
        own, scale = builtin_prompts(source.reference), GUIDANCE_SCALES[source.reference]
        assert own is not None
        prompts = read_prompts(own)
        captions, classes = held_out_captions(set(prompts))
        config = QuantizeConfig(steps=1, guidance_scale=scale)
        found = calibration_source(Request(prompts=[*prompts, *captions]), config, source)
        halves = found.collect(source.model, range(len(prompts) + len(captions)), silent).conditions
        with_prompt = {name: value[1::2] for name, value in halves.items()}  # the half without comes first, as everywhere in diffusers
        given, judged = ({name: value[part] for name, value in with_prompt.items()} for part in _parts(len(prompts)))
        null = {name: value[:1] for name, value in halves.items()}
        assert found.form is not None
        return cls(text_pipeline(source), found.form, scale, prompts, given, judged, null, classes)

    @property
    def sha256(self) -> str:
        """Of all beside the denoiser's weights that decides a picture: prompts as the encoder hears them, guidance, autoencoder."""
        named = {"given": self.given, "judged": self.judged, "null": self.null, "vae": self.pipeline.vae.state_dict()}
        tensors = {f"{kind}.{name}": value for kind, values in named.items() for name, value in values.items()}
        return sha256_json([weights_sha256(tensors), self.guidance_scale])

    def guided(self, denoiser: Denoiser) -> Denoiser:
        """The prediction that a step is taken with, of a denoiser that answers with and without the prompt."""

        def call(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
            both = {name: torch.cat([self.null[name].expand_as(value), value]) for name, value in conditions.items()}
            without, with_prompt = denoiser(torch.cat([sample, sample]), torch.cat([timestep, timestep]), **both).chunk(2)
            return without + self.guidance_scale * (with_prompt - without)

        return call

    def without(self, conditions: Mapping[str, torch.Tensor]) -> Conditions:
        """The conditions of no prompt for as many samples."""
        return {name: self.null[name].expand_as(value) for name, value in conditions.items()}

    @torch.inference_mode()
    def decoded(self, latents: Array) -> Array:
        """Pictures [n, C, H, W] in [-1, 1] of latents."""
        vae = self.pipeline.vae
        parts = torch.from_numpy(latents).split(_DECODED_AT_ONCE)
        pictures: Array = torch.cat([vae.decode(part / vae.config.scaling_factor).sample for part in parts]).numpy()
        return pictures


def _parts(calibrated: int) -> tuple[slice, slice]:
    return slice(calibrated), slice(calibrated, None)


def held_out_captions(known: set[str]) -> tuple[list[str], torch.Tensor]:
    """Captions of the classes in turn that are not among the known, and their classes [P]."""
    from training.captions import caption
    from training.data import CLASSES

    generator, captions = torch.Generator().manual_seed(_SEED), list[str]()
    while len(captions) < HELD_OUT:
        thirds, mirrored = torch.randint(3, (3,), generator=generator).tolist(), bool(torch.randint(2, (), generator=generator))
        text = caption(len(captions) % len(CLASSES), thirds, mirrored, generator)
        captions += [] if text in known else [text]
    return captions, torch.arange(HELD_OUT) % len(CLASSES)
