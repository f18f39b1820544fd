"""How a network is called: tensors in any structure, constants, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .describe import Found, described, from_conditions, stacked, whole_batch
from .form import RETURN_DICT, SHARED_RANK, TIMESTEP, CallForm, timestep_of
from .output import SAMPLE, OutputForm, output_form, packed, usual_class
from .sample_lists import whole_batch_forward
from .tree import shown

__all__ = [
    "RETURN_DICT",
    "SHARED_RANK",
    "TIMESTEP",
    "CallForm",
    "Found",
    "OutputForm",
    "call_of_record",
    "call_record",
    "described",
    "from_conditions",
    "output_form",
    "packed",
    "shown",
    "stacked",
    "timestep_of",
    "whole_batch",
    "whole_batch_forward",
]


def call_record(form: CallForm, output: OutputForm, inputs: Sequence[str], model_class: str) -> dict[str, Any] | None:
    """What a manifest holds of a call; None where the inputs are its first arguments, and one tensor comes back."""
    arguments, result = form.record(inputs), output.record(model_class)
    return {"arguments": arguments, "output": result} if arguments or result else None


def call_of_record(record: Mapping[str, Any] | None, inputs: Sequence[str], model_class: str | None) -> tuple[CallForm, OutputForm]:
    """The form of a call and of what comes back from what a manifest holds of them."""
    record = record or {}
    form = CallForm.of_record(record["arguments"]) if record.get("arguments") else CallForm(tuple(inputs))
    usual = {"dict": [[SAMPLE, {"tensor": []}]], "class": usual_class(model_class or "")}
    return form, OutputForm(record.get("output") or usual)
