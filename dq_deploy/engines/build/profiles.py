"""Several optimization profiles of one engine: ranges of shapes, each with kernels of its own. A run takes the nearest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ...artifacts.details import BundleDetails, FreeDimension
from ...errors import UsageError
from .options import flag

Range = tuple[int, int, int]
Profile = Mapping[str, Range]
"""(min, opt, max) of the batch and of every other dynamic dimension, by name."""
BATCH = "batch"
_EXAMPLE = 'such as --profile "batch=1,2,2 height=64,64,96"'


def parse_profile(text: str) -> dict[str, Range]:
    """``"batch=1,2,2 height=64,64,96"``. Raises UsageError."""
    found: dict[str, Range] = {}
    for word in text.split():
        name, equals, values = word.partition("=")
        try:
            sizes = [int(size) for size in values.split(",")]
        except ValueError:
            sizes = []
        if not equals or len(sizes) != 3 or name in found:
            raise UsageError(f"--profile takes NAME=MIN,OPT,MAX once for each dimension, not '{word}'", _EXAMPLE)
        found[name.replace("-", "_")] = (sizes[0], sizes[1], sizes[2])
    if not found:
        raise UsageError("a --profile is empty", _EXAMPLE)
    return found


def whole_profiles(details: BundleDetails, batch: Range, sizes: Mapping[str, Range], given: Sequence[Profile]) -> list[dict[str, Range]]:
    """Every profile with all dimensions: those that it does not name are as ``batch`` and ``sizes`` have them. Without any given: that one.

    Raises UsageError for two that are the same, and as ``size_ranges`` does.
    """
    found: list[dict[str, Range]] = []
    for own in given or ({},):
        ranges = {BATCH: own.get(BATCH, batch), **size_ranges(details, {**sizes, **{k: v for k, v in own.items() if k != BATCH}})}
        if ranges in found:
            raise UsageError(f"two profiles are the same: {in_words(ranges)}", "leave one out")
        found.append(ranges)
    return found


def envelope(profiles: Sequence[Profile]) -> dict[str, Range]:
    """From the least of all profiles to the largest, with the first one's opt."""
    return {name: (min(p[name][0] for p in profiles), profiles[0][name][1], max(p[name][2] for p in profiles)) for name in profiles[0]}


def nearest(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> int | None:
    """The number of the profile that takes these sizes and was tuned for the nearest to them; None where none takes them."""
    fits = [number for number, profile in enumerate(profiles) if takes(profile, sizes)]
    return min(fits, key=lambda number: _distance(profiles[number], sizes), default=None)


def takes(profile: Profile, sizes: Mapping[str, int]) -> bool:
    """Whether every size lies within a profile, which may have more dimensions."""
    return all(profile[name][0] <= size <= profile[name][2] for name, size in sizes.items() if name in profile)


def _distance(profile: Profile, sizes: Mapping[str, int]) -> float:
    return sum(abs(math.log(max(size, 1) / profile[name][1])) for name, size in sizes.items() if name in profile)


def in_words(profile: Profile) -> str:
    """As ``--profile`` takes it."""
    return " ".join(f"{name.replace('_', '-')}={','.join(map(str, values))}" for name, values in profile.items())


def size_ranges(details: BundleDetails, given: Mapping[str, Range]) -> dict[str, Range]:
    """(min, opt, max) of every free dimension: as ``given``, or else from the least calibrated size to the largest, for the first.

    Raises UsageError for sizes that the graph does not compute, and for one of a dimension that follows another.
    """
    chosen = details.chosen
    if led := [f"{name}, which follows the {details.free[name].of}" for name in given if name in details.free and name not in chosen]:
        raise UsageError(f"a range is given of {'; '.join(led)}", "leave it out")
    ranges = {**{name: dimension.range for name, dimension in chosen.items()}, **given}
    odd = [
        f"{flag(name)} {','.join(map(str, ranges[name]))} has {size}"
        for name, dimension in chosen.items()
        for size in ranges[name]
        if size % dimension.multiple
    ]
    if odd:
        multiples = ", ".join(f"{name} in steps of {dimension.multiple}" for name, dimension in chosen.items())
        units = dict.fromkeys(details.unit(name) for name in chosen) or [""]
        raise UsageError(f"the network takes {multiples}, and {'; '.join(odd)}", f"sizes are the input's own{_of(next(iter(units)))}")
    return ranges | following(details.free, ranges)


def _of(unit: str) -> str:
    return f": {unit}" if unit else ""


def following(free: Mapping[str, FreeDimension], ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges of dimensions that follow others, from these others'."""
    found = {}
    for name, dimension in free.items():
        if dimension.of is not None:
            least, usual, largest = map(dimension.following, ranges[dimension.of])
            found[name] = (least, usual, largest)
    return found
