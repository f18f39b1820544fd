"""Classes of a class-conditional model: how many it has, which one means "no class", and what the user asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import UsageError

CLASS_INPUT = "class_labels"
"""The name that diffusers gives to the input."""


@dataclass(frozen=True)
class ClassSpace:
    """Classes 0 … count − 1; ``null`` is the label of the unconditional half, None where the model was not trained with one."""

    count: int
    null: int | None

    def conditions(self, classes: Sequence[int]) -> dict[str, torch.Tensor]:
        """The classes as conditions [P]."""
        return {CLASS_INPUT: torch.tensor(list(classes), dtype=torch.int64)}

    def null_conditions(self) -> dict[str, torch.Tensor]:
        """The label of the unconditional half [1]. Raises UsageError when there is none."""
        if self.null is None:
            raise UsageError("the model has no null class, and guidance needs one", "leave the guidance scale out")
        return self.conditions([self.null])

    def choose(self, classes: str | Sequence[int] | None) -> list[int]:
        """The classes asked for, all of them by default. Raises UsageError for one that the model does not have."""
        chosen = list(range(self.count)) if classes is None else parse_classes(classes) if isinstance(classes, str) else list(classes)
        wrong = [c for c in chosen if isinstance(c, bool) or not isinstance(c, int) or not 0 <= c < self.count]
        if wrong or not chosen:
            problem = f"no class {', '.join(map(str, wrong[:5]))}" if wrong else "no class is given"
            hint = None if self.null is None else "the null class is calibrated with a guidance scale above 1"
            raise UsageError(f"{problem}: the model has classes 0 to {self.count - 1}", hint)
        return chosen


def class_space(model: nn.Module | None, config: Mapping[str, Any]) -> ClassSpace | None:
    """The classes of a diffusers model with ``config``, None when it takes none.

    A DiT's null class follows its last class (``LabelEmbedding`` of diffusers); a UNet's table has a row for each class and no more.
    """
    takes_classes = model is None or CLASS_INPUT in inspect.signature(model.forward).parameters
    if not takes_classes:
        return None
    if "DiT" in str(config.get("_class_name")) or config.get("norm_type") == "ada_norm_zero":
        count = config.get("num_embeds_ada_norm")
        return ClassSpace(count, null=count) if isinstance(count, int) else None
    count = config.get("num_class_embeds")
    return ClassSpace(count, null=None) if isinstance(count, int) and config.get("class_embed_type") is None else None


def parse_classes(text: str) -> list[int]:
    """``0-9,3`` → 0, 1, …, 9, 3. Raises UsageError."""
    classes: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UsageError(f"classes are numbers and ascending ranges with commas between them, such as 0-9,3, not '{text}'")
        classes += range(int(first), int(last if dash else first) + 1)
    return classes
