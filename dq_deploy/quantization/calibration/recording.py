"""Trajectories from a diffusers pipeline that runs itself, while every call of its denoiser is recorded.

The pipeline stays in charge: its own text encoders, guidance, scheduler and loop. The denoiser's inputs and outputs are all that is taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...errors import UsageError
from .trajectories import Conditions, check_finite

_NESTED = "added_cond_kwargs"  # the one argument of diffusers models that is a dict of tensors
UNBATCHED = ("img_ids", "txt_ids")
"""Positions of FLUX's tokens [L, 3]: one for the whole batch. A graph has them with a batch dimension, and gives its model the first."""


@dataclass(frozen=True)
class Call:
    """One call of the denoiser: sample [B, ...], conditions [B, ...], in float32 (whole numbers stay what they are) on the CPU."""

    timestep: float
    sample: torch.Tensor
    conditions: Conditions
    output: torch.Tensor | None = None


@dataclass
class Stream:
    """Calls that share their conditions: a pipeline that guides by separate calls makes one stream for each half."""

    conditions: Conditions
    calls: list[Call] = field(default_factory=list)

    def accepts(self, call: Call) -> bool:
        """Whether the call's conditions are this stream's."""
        return set(call.conditions) == set(self.conditions) and not any(_differs(call.conditions[n], v) for n, v in self.conditions.items())


class FirstCallError(Exception):
    """Ends a pipeline's run at its denoiser's first call, which ``call`` describes."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


@contextmanager
def recording(model: nn.Module, on_call: Callable[[Call], None], *, only_first: bool = False) -> Iterator[None]:
    """Report every call of ``model``; ``only_first`` raises FirstCallError instead of computing anything.

    The model computes in its own type on its own device, and what it returns is in the caller's, so a float32 model can serve a pipeline
    whose other parts are in half precision.
    """
    parameter = next(model.parameters())
    names = list(inspect.signature(model.forward).parameters)
    pending: list[tuple[Call, torch.Tensor]] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        call = read_call(module, named)
        if only_first:
            raise FirstCallError(call)
        pending.append((call, named[names[0]]))
        return (), _moved(named, parameter)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:  # noqa: ARG001  a hook's arguments
        call, like = pending.pop()
        tensor = result if isinstance(result, torch.Tensor) else result[0]
        on_call(Call(call.timestep, call.sample, call.conditions, _kept(tensor)))
        if tensor.dtype == like.dtype and tensor.device == like.device:
            return result
        tensor = tensor.to(like.device, like.dtype)
        return tensor if isinstance(result, torch.Tensor) else (tensor,) if isinstance(result, tuple) else type(result)(sample=tensor)

    handles = [model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after, with_kwargs=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_call(model: nn.Module, named: Mapping[str, Any]) -> Call:
    """A call's inputs by name. Raises UsageError for one that a graph of tensors with a batch dimension cannot have."""
    parameters = inspect.signature(model.forward).parameters
    first = next(iter(parameters))
    sample = named[first]
    timestep = named["timestep"]
    moments = {float(t) for t in torch.as_tensor(timestep).float().flatten()}
    if len(moments) != 1:
        raise UsageError(f"the pipeline mixes the timesteps {sorted(moments)} in one batch, and one is needed for each row of a table")
    conditions: Conditions = {}
    for name, value in {**named, **(named.get(_NESTED) or {})}.items():
        default = parameters[name].default if name in parameters else None
        if name in (first, "timestep", "return_dict", _NESTED) or value is None or _nothing(value, default):
            continue
        if not isinstance(value, torch.Tensor):
            raise _no_condition(model, name, value)
        rows = value[None] if name in UNBATCHED and value.dim() == 2 else value
        if rows.dim() == 0 or len(rows) not in (1, len(sample)):
            raise _no_condition(model, name, value)
        conditions[name] = _kept(rows.expand(len(sample), *rows.shape[1:]))
    return Call(moments.pop(), _kept(sample), conditions)


def _no_condition(model: nn.Module, name: str, value: Any) -> UsageError:
    return UsageError(
        f"the pipeline calls its {type(model).__name__} with {name} = {_shown(value)}, which is no tensor with a batch dimension",
        "such a model cannot be calibrated through its pipeline",
    )


def streams(calls: Sequence[Call]) -> list[Stream]:
    """Calls of one run, grouped by their conditions. Raises UsageError when conditions change on the way."""
    found: list[Stream] = []
    for call in calls:
        stream = next((s for s in found if s.accepts(call)), None)
        if stream is None:
            stream = Stream(call.conditions)
            found.append(stream)
        stream.calls.append(call)
    visited = [[call.timestep for call in stream.calls] for stream in found]
    if any(timesteps != visited[0] for timesteps in visited):
        changing = [n for n in found[0].conditions if any(_differs(s.conditions.get(n), found[0].conditions[n]) for s in found[1:])]
        raise UsageError(
            f"the pipeline changes {', '.join(changing) or 'its inputs'} while it samples, and conditions must stay as they are",
            "switch off guidance that ends early or prompts that change on the way",
        )
    return found


def by_seed(values: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """[k·count, ...] of each stream (k halves, each over all ``count`` seeds) → [count·K, ...], the K samples of a seed together.

    diffusers stacks whole halves: [unconditional of all; conditional of all].
    """
    return torch.cat([value.unflatten(0, (-1, count)) for value in values]).transpose(0, 1).flatten(0, 1)


def check_call(call: Call, seeds: Sequence[int]) -> None:
    """Raise UsageError for a batch that is no multiple of the seeds', and ArtifactError for NaN or Inf in the output."""
    assert call.output is not None
    if len(call.sample) % len(seeds):
        raise UsageError(f"the pipeline calls its model with {len(call.sample)} samples for {len(seeds)} prompts")
    check_finite(by_seed([call.output], len(seeds)), call.timestep, seeds, len(call.sample) // len(seeds))


def _moved(named: Mapping[str, Any], like: torch.Tensor) -> dict[str, Any]:
    return {name: _moved(value, like) if isinstance(value, Mapping) else _placed(value, like) for name, value in named.items()}


def _placed(value: Any, like: torch.Tensor) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)


def _kept(value: torch.Tensor) -> torch.Tensor:
    """A copy: pipelines may change their tensors in place."""
    return value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True).contiguous()


def _nothing(value: Any, default: Any) -> bool:
    """An option at its default, or an empty collection."""
    return not isinstance(value, torch.Tensor) and (value is default or value == default or (not value and hasattr(value, "__len__")))


def _differs(a: torch.Tensor | None, b: torch.Tensor) -> bool:
    return a is None or a.shape != b.shape or not torch.equal(a, b)


def _shown(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:80]
