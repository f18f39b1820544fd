"""Other answers in the place of a pipeline's denoiser, while the pipeline samples as always."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..calling import RETURN_DICT, CallForm, OutputForm, described
from .recording import batch_of, read_call
from .trajectories import Answer


@contextmanager
def standing_in(model: nn.Module, answer: Answer, form: CallForm | None, output: OutputForm, *, runs: int, seeds: int) -> Iterator[None]:
    """Let ``model`` return ``answer`` in the form of its ``output``, for a batch of ``runs`` runs of the same ``seeds``, one after another.

    diffusers stacks whole halves, each of all prompts: a batch is [halves, runs, seeds], and a run has halves · seeds of its samples.
    """
    parameters = inspect.signature(model.forward).parameters
    names = list(parameters)
    by_default = parameters[RETURN_DICT].default if RETURN_DICT in parameters else True
    own = model.__dict__.get("forward")  # accelerate puts one there

    def forward(*args: Any, **kwargs: Any) -> Any:
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        sample = named[names[0]]
        call = read_call(model, named, form or described(model, named, batch=batch_of(named)).form)
        conditions = {name: _by_run(value, runs, seeds) for name, value in call.conditions.items()}
        answered = answer(_by_run(call.sample, runs, seeds), call.timestep, conditions)
        like = sample if isinstance(sample, torch.Tensor) else sample[0]
        whole = answered.unflatten(1, (-1, seeds)).transpose(0, 1).flatten(0, 2)
        return output.restore(whole.to(like.device, like.dtype), return_dict=named.get(RETURN_DICT, by_default))

    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own


def _by_run(value: torch.Tensor, runs: int, seeds: int) -> torch.Tensor:
    """[halves · runs · seeds, ...] → [runs, halves · seeds, ...]."""
    samples: torch.Tensor = value.unflatten(0, (-1, runs, seeds)).transpose(0, 1).flatten(1, 2)
    return samples
