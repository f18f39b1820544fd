"""Trajectories from a diffusers pipeline that runs itself, while every call of its denoiser is recorded.

The pipeline stays in charge: its own text encoders, guidance, scheduler and loop. The denoiser's inputs and outputs are all that is taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ...errors import UsageError
from ..calling import RETURN_DICT, SHARED_RANK, TIMESTEP, CallForm, described, packed, shown
from ..calling.tree import input_names
from .trajectories import Conditions, check_finite

UNBATCHED = tuple(SHARED_RANK)
"""Positions of FLUX's tokens: in artefacts that do not say how their network is called, these are one for the whole batch."""


_RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "block_controlnet_hidden_states",
    "controlnet_block_samples",
    "controlnet_single_block_samples",
)
"""Arguments that another network (a ControlNet) computes anew at each step."""


@dataclass(frozen=True)
class Call:
    """One call of the denoiser: sample [B, ...], conditions [B, ...], in float32 (whole numbers stay what they are) on the CPU."""

    timestep: float
    sample: torch.Tensor
    conditions: Conditions
    form: CallForm
    output: torch.Tensor | None = None

    @property
    def kept(self) -> Conditions:
        """Conditions that stay as they are over the steps."""
        varying = varying_names(self.form, list(self.conditions))
        return {name: value for name, value in self.conditions.items() if name not in varying}


@dataclass
class Stream:
    """Calls that share their conditions: a pipeline that guides by separate calls makes one stream for each half."""

    conditions: Conditions
    calls: list[Call] = field(default_factory=list)

    def accepts(self, call: Call) -> bool:
        """Whether the call's conditions are this stream's."""
        kept = call.kept
        return set(kept) == set(self.conditions) and not any(_differs(kept[name], value) for name, value in self.conditions.items())


class FirstCallError(Exception):
    """Ends a pipeline's run at its denoiser's first call, with ``arguments`` by parameter."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


@contextmanager
def first_call(model: nn.Module) -> Iterator[None]:
    """Raise FirstCallError where ``model`` is called, instead of computing anything."""
    names = list(inspect.signature(model.forward).parameters)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001  a hook's arguments
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        raise FirstCallError({names[0]: named[names[0]], **named})

    handle = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def recording(model: nn.Module, on_call: Callable[[Call], None], form: CallForm | None = None) -> Iterator[None]:
    """Report every call of ``model``, which is called as ``form`` says; without it as its first call is.

    The model computes in its own type on its own device, and what it returns is in the caller's, so a float32 model can serve a pipeline
    whose other parts are in half precision.
    """
    parameter = next(model.parameters())
    names = list(inspect.signature(model.forward).parameters)
    pending: list[tuple[Call, torch.Tensor]] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal form
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        sample = named[names[0]]
        form = form or described(module, named, batch=len(sample)).form
        pending.append((read_call(module, named, form), sample if isinstance(sample, torch.Tensor) else sample[0]))
        return (), tree_map_only(torch.Tensor, lambda value: _placed(value, parameter), named)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:  # noqa: ARG001  a hook's arguments
        call, like = pending.pop()
        on_call(replace(call, output=_kept(packed(result, sample_list=call.form.sample_list))))
        return tree_map_only(torch.Tensor, lambda value: value.to(like.device, like.dtype) if value.is_floating_point() else value, result)

    handles = [model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after, with_kwargs=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def batch_of(arguments: Mapping[str, Any]) -> int:
    """The batch of a call with these arguments, the first of which is the sample."""
    return len(next(iter(arguments.values())))


def read_call(model: nn.Module, named: Mapping[str, Any], form: CallForm) -> Call:
    """A call's inputs as the graph of ``form`` has them.

    Raises UsageError for one of another form, and for several timesteps in one batch.
    """
    given = {name: value for name, value in named.items() if not (name == RETURN_DICT or value is None)}
    first = form.parameters[0]
    try:
        conditions = form.bind((), given, None)
    except UsageError as error:
        raise UsageError(
            f"the pipeline calls its {type(model).__name__} in different ways: {error.message}",
            "switch off what changes on the way, and choose prompts that it pads to one length",
        ) from error
    sample = conditions.pop(first)
    moments = {float(t) for t in torch.as_tensor(conditions.pop(TIMESTEP)).float().flatten()}
    if len(moments) != 1:
        raise UsageError(
            f"the pipeline mixes the timesteps {sorted(moments)} in one batch, and one is needed for each row of a table",
            "where parts of a sample have timesteps of their own (the first frame of LTX-Video from a picture), quantize a module that "
            "takes one timestep and makes them of it, with the mask among conditions=",
        )
    size = len(sample)
    bad = [name for name, value in conditions.items() if not isinstance(value, torch.Tensor) or value.dim() == 0 or len(value) != size]
    if bad:
        raise UsageError(
            f"the pipeline calls its {type(model).__name__} with {bad[0]} = {shown(conditions[bad[0]])} for a batch of {size}",
            "choose prompts that it pads to one length, and pictures of one size",
        )
    return Call(moments.pop(), _kept(sample), {name: _kept(value) for name, value in conditions.items()}, form)


def streams(calls: Sequence[Call]) -> list[Stream]:
    """Calls of one run, grouped by their conditions. Raises UsageError when conditions change on the way."""
    found: list[Stream] = []
    for call in calls:
        stream = next((s for s in found if s.accepts(call)), None)
        if stream is None:
            stream = Stream(call.kept)
            found.append(stream)
        stream.calls.append(call)
    visited = [[call.timestep for call in stream.calls] for stream in found]
    if any(timesteps != visited[0] for timesteps in visited):
        changing = [n for n in found[0].conditions if any(_differs(s.conditions.get(n), found[0].conditions[n]) for s in found[1:])]
        raise UsageError(
            f"the pipeline changes {', '.join(changing) or 'its inputs'} while it samples, and conditions must stay as they are",
            "switch off guidance that ends early or prompts that change on the way",
        )
    for name in found[0].conditions:
        shapes = dict.fromkeys(tuple(s.conditions[name].shape[1:]) for s in found if name in s.conditions)
        if len(shapes) > 1:
            lengths = " and ".join(str(list(shape)) for shape in shapes)
            raise UsageError(
                f"the pipeline calls its model with {name} of {lengths} for one picture, and guidance's halves must be alike",
                "give a negative prompt that makes as many tokens as the prompt, or draw without guidance",
            )
    return found


def varying_names(form: CallForm, inputs: Sequence[str]) -> list[str]:
    """Those of a graph's ``inputs`` that change from step to step."""
    inside = {name for argument in _RESIDUALS if argument in form.arguments for name in input_names(form.arguments[argument])}
    return [name for name in inputs if name in inside or name in _RESIDUALS]


def by_seed(values: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """[k·count, ...] of each stream (k halves, each over all ``count`` seeds) → [count·K, ...], the K samples of a seed together.

    diffusers stacks whole halves: [unconditional of all; conditional of all].
    """
    return torch.cat([value.unflatten(0, (-1, count)) for value in values]).transpose(0, 1).flatten(0, 1)


def check_call(call: Call, seeds: Sequence[int]) -> None:
    """Raise UsageError for a batch that is not a multiple of the seeds', and ArtifactError for NaN or Inf in the output."""
    assert call.output is not None
    if len(call.sample) % len(seeds):
        raise UsageError(f"the pipeline calls its model with {len(call.sample)} samples for {len(seeds)} prompts")
    check_finite(by_seed([call.output], len(seeds)), call.timestep, seeds, len(call.sample) // len(seeds))


def _placed(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)


def _kept(value: torch.Tensor) -> torch.Tensor:
    """A copy: pipelines may change their tensors in place."""
    return value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True).contiguous()


def _differs(a: torch.Tensor | None, b: torch.Tensor) -> bool:
    return a is None or a.shape != b.shape or not torch.equal(a, b)
