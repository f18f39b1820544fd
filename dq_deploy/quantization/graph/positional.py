"""A model called with its inputs by position, as torch.export wants it, and what it gives at other batches than the capture's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...errors import ArtifactError, DqDeployError, UsageError, raise_if_out_of_memory
from ..calling import TIMESTEP, CallForm, OutputForm, output_form, packed, whole_batch_forward
from .exporting import described
from .shapes import resized

BATCHES = (1, 3)
"""At which a model and its graph, captured at 2, are compared."""


class Positional(nn.Module):
    """Calls ``module`` with named inputs given by position, and returns the output as one tensor."""

    def __init__(self, module: nn.Module, names: Sequence[str], form: CallForm) -> None:
        super().__init__()
        self.module = module
        self.names = list(names)
        self.form = form
        self.whole_timesteps = False
        self.returns: OutputForm | None = None  # what ``checked`` saw

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Inputs [N, ...] → output [N, ...]."""
        if self.form.sample_list:
            named = self._named(*tensors)
            constants = {name: tree["constant"] for name, tree in self.form.arguments.items() if "constant" in tree}
            whole = whole_batch_forward(self.module, named, {**self.form.defaults, **constants})
            if whole is not None:
                return whole
        return packed(self._own(*tensors), sample_list=self.form.sample_list)

    def checked(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The output [N, ...], after a look at what the module itself returns. Raises ArtifactError for what is not an output."""
        output = self._own(*tensors)
        self.returns = output_form(output, self.module, len(tensors[0]), sample_list=self.form.sample_list)
        return packed(output, sample_list=self.form.sample_list)

    def _named(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        named = dict(zip(self.names, tensors, strict=True))
        if self.whole_timesteps:
            named[TIMESTEP] = named[TIMESTEP].round().long()
        return named

    def _own(self, *tensors: torch.Tensor) -> Any:
        return self.form.call(self.module, self._named(*tensors))


def input_names(module: nn.Module, conditions: Sequence[str] = (), form: CallForm | None = None) -> list[str]:
    """Graph input names, in the order of the module's forward: its first parameter, ``timestep``, and the given conditions.

    Raises UsageError when a condition is not a parameter of the forward and no part of one in ``form``, and when one is missing.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    form = form or CallForm.plain(module, conditions)
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    known = [p.name for p in parameters]
    unknown = [c for c in conditions if c not in known and c not in form.inside and not takes_any]
    if unknown:
        raise UsageError(f"{type(module).__name__}.forward takes no {', '.join(unknown)}; it takes {', '.join(known)}")
    given = {*conditions, *form.arguments, form.timestep, known[0]}
    named = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if missing := [p.name for p in named if p.name not in given]:
        raise UsageError(
            f"{type(module).__name__}.forward needs {', '.join(missing)}, and no such condition is given",
            "from Python: dq_deploy.quantize(module, ..., scheduler=scheduler, sample_shape=(C, H, W), conditions={...})",
        )
    return form.order(module, conditions)


@torch.no_grad()
def expected_outputs(wrapper: Positional, tensors: list[torch.Tensor]) -> tuple[dict[int, torch.Tensor], Exception | None]:
    """The model's outputs [N, ...] at batches that it is not captured with, or the reason why there are none.

    Timesteps are given as floats, and as integers to a model that fails with floats (it looks them up in a table).
    Raises ArtifactError when an output has NaN or Inf.
    """
    problem: Exception | None = None
    for wrapper.whole_timesteps in (False, True):
        try:
            found = {batch: wrapper.checked(*resized(tensors, batch)) for batch in BATCHES}
        except DqDeployError:
            raise
        except Exception as error:  # noqa: BLE001  a model may raise anything; does_not_run reports it
            raise_if_out_of_memory(error)
            problem = problem or error
            continue
        if not all(bool(torch.isfinite(output).all()) for output in found.values()):
            raise ArtifactError("the model's output has NaN or Inf on random input", "check the model's weights")
        return found, None
    wrapper.whole_timesteps = False
    return {}, problem


def does_not_run(wrapper: Positional, names: list[str], tensors: list[torch.Tensor], error: Exception) -> ArtifactError:
    """The error for a model that fails on its own on inputs [N, ...], with the batches that it fails at."""
    name = type(wrapper.module).__name__
    try:
        with torch.no_grad():
            wrapper(*tensors)
    except Exception as own:  # noqa: BLE001  whatever it is, it is reported
        raise_if_out_of_memory(own)
        return ArtifactError(f"{name} does not run on {shown(dict(zip(names, tensors, strict=True)))}: {described(own)}")
    return ArtifactError(
        f"{name} runs at batch {len(tensors[0])}, and not at batches {' and '.join(map(str, BATCHES))}: {described(error)}"
    )


def shown(example: Mapping[str, torch.Tensor]) -> str:
    """The names and shapes of inputs [N, ...], for a message."""
    return ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in example.items())
