"""Prompts that a pipeline does not pad to one length, as sizes of one calibration: Qwen-Image and Z-Image hand over each as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import ArtifactError, UsageError
from .pipeline_source import PipelineSource, Shapes
from .sized_source import Size, SizedSource
from .source import CalibrationSource

_MOST = 4
"""Lengths that are calibrated; a graph takes any between them."""


def by_prompt_length(source: CalibrationSource) -> SizedSource | None:
    """The source at up to four lengths of its prompts, the shortest and the longest among them, and at one more to judge by.

    None where its pipeline pads what it is given, by what it makes of the prompts with the fewest and the most letters. Prompts of other
    lengths than those that are taken are left out.
    """
    if not isinstance(source, PipelineSource) or len(set(source.prompts)) < 2:
        return None
    prompts = sorted(set(source.prompts), key=len)
    shapes = {prompt: source.shapes_of(prompt) for prompt in (prompts[0], prompts[-1])}
    axis = _differs(*shapes.values())
    if axis is None:
        return None
    shapes |= {prompt: source.shapes_of(prompt) for prompt in prompts[1:-1]}
    groups: dict[int, list[str]] = {}
    for prompt in source.prompts:
        groups.setdefault(_length(shapes[prompt], axis), []).append(prompt)
    lengths = sorted(groups)
    taken = [lengths[place] for place in _spread(len(lengths))]
    others = [length for length in lengths if length not in taken]
    middle = others[len(others) // 2] if others else None
    return SizedSource(
        tuple(source.with_prompts(groups[length]) for length in taken),
        tuple(Size(None, length) for length in taken),
        _only_those,
        between=None if middle is None else source.with_prompts(groups[middle]),
        size_between=None if middle is None else Size(None, middle),
        whole=source,
    )


@contextmanager
def unpadded_prompts_explained(calibration: CalibrationSource | SizedSource) -> Iterator[None]:
    """Say of a network that takes texts of one length only that the prompts have several."""
    try:
        yield
    except ArtifactError as error:
        if not isinstance(calibration, SizedSource) or calibration.whole is None:
            raise
        lengths = ", ".join(map(str, calibration.sizes))
        raise UsageError(
            f"the pipeline does not pad its prompts, which have {lengths}, and its network cannot be captured for all: {error.message}",
            "choose prompts that make as many tokens as each other",
        ) from error


def _only_those(size: Size) -> CalibrationSource:
    raise UsageError(f"no prompt has {size}", "add one of that length to the prompts")


def _spread(count: int) -> list[int]:
    """Places of up to ``_MOST`` of so many, from the first to the last."""
    most = min(_MOST, count)
    return sorted({round(number * (count - 1) / max(1, most - 1)) for number in range(most)})


def _differs(one: Shapes, other: Shapes) -> tuple[str, int] | None:
    """The first input, and which of its dimensions, that two prompts give another size."""
    for name, shape in one.items():
        for dim, (size, again) in enumerate(zip(shape, other.get(name, shape), strict=False)):
            if size != again:
                return name, dim
    return None


def _length(shapes: Shapes, axis: tuple[str, int]) -> int:
    name, dim = axis
    return shapes[name][dim]
