"""Pictures that a calibration begins with: of one size, and of a strength that leaves steps to run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ...errors import UsageError
from ...sources import Pictures
from .trajectories import Trajectories


def fitted(pipeline_class: Any, pictures: Pictures, size: Mapping[str, int]) -> tuple[Pictures, dict[str, int]]:
    """The pictures at the size asked for, or at their own, and the size to draw at as far as it is not the pipeline's own.

    A pipeline whose call takes no height draws at the size of its picture. Raises UsageError for pictures of several sizes, and for a
    height without a width.
    """
    asked, found = {"height", "width"} & size.keys(), dict(size)
    if not pictures.drawn:
        return pictures, found
    if len(asked) == 1:
        raise UsageError(f"a {asked.pop()} alone is given, and pictures are resized to both", "give --height and --width")
    if asked:
        return pictures.resized(size["height"], size["width"]), found
    own = pictures.size
    if own is None:
        sizes = sorted({f"{p.width}×{p.height}" for name in pictures.drawn for p in getattr(pictures, name)})
        raise UsageError(
            f"the pictures are {', '.join(sizes)} pixels, and a graph is made for one size",
            "give --height and --width, to which they are resized, or pictures of one size",
        )
    if "height" not in inspect.signature(pipeline_class.__call__).parameters:
        found |= {"height": own[0], "width": own[1]}
    return pictures, found


def with_own_strength(pipeline_class: Any, pictures: Pictures) -> Pictures:
    """The pictures with the strength that the pipeline has by default, where none is asked for: many are below 1, and skip steps."""
    own = inspect.signature(pipeline_class.__call__).parameters.get("strength")
    known = own is not None and isinstance(own.default, int | float)
    return replace(pictures, strength=float(own.default)) if own and known and pictures.strength is None else pictures


def check_strength(strength: float | None, steps: int) -> None:
    """Raise UsageError where a strength leaves none of the steps."""
    if strength is not None and int(steps * strength) < 1:
        raise UsageError(
            f"a strength of {strength} runs {steps * strength:.2g} of {steps} steps, which is none",
            f"give a strength of {1 / steps:.3g} or more, or more --steps",
        )


def with_skipped_rows(own: Trajectories, whole: Trajectories) -> Trajectories:
    """``own`` with the timesteps that only ``whole`` has: those that its strength skips, as the same seeds meet them at strength 1.

    Raises UsageError where the pipeline conditions its network otherwise then.
    """
    changed = [name for name, value in own.conditions.items() if not torch.equal(value, whole.conditions.get(name, value[:0]))]
    if changed:
        raise UsageError(
            f"the pipeline changes {', '.join(changed)} with its strength, and one set is needed for all timesteps",
            "leave --strength out: all steps are then run",
        )
    missing = ~torch.isin(whole.timesteps, own.timesteps)
    timesteps = torch.cat([own.timesteps, whole.timesteps[missing]])
    order = timesteps.argsort()
    samples, outputs = (torch.cat([a, b[missing]])[order] for a, b in ((own.samples, whole.samples), (own.outputs, whole.outputs)))
    varying = {name: torch.cat([value, whole.varying[name][missing]])[order] for name, value in own.varying.items()}
    return Trajectories(timesteps[order], samples, outputs, own.conditions, own.per_seed, varying)
