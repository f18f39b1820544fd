"""The sizes that an artefact takes where heights, widths or tokens are free, and which command makes one that takes another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...artifacts import Artifact, is_kind, of_kind
from ...artifacts.details import Details, EngineDetails, FreeDimension
from ...errors import UsageError
from ..build.options import flag
from ..build.profiles import takes
from .engine_files import outside


class _Shaped(Protocol):
    @property
    def shape(self) -> Any: ...


@dataclass(frozen=True)
class SizeRange:
    """What an artefact takes of each free dimension, from the least to the largest, and where that is from."""

    artifact: Artifact[Details]
    free: Mapping[str, FreeDimension]
    limits: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, artifact: Artifact[Details]) -> SizeRange:
        """What an engine was built for, what all members of a schedule take, or what else was calibrated."""
        free = artifact.details.free
        if not artifact.members:
            built = artifact.details.sizes if is_kind(artifact, EngineDetails) else {}
            ranges = {name: built.get(name, dimension.range) for name, dimension in free.items()}
            return cls(artifact, free, {name: (least, largest) for name, (least, _, largest) in ranges.items()})
        limits = [cls.of(member).limits for member in artifact.members]
        shared = {name: (max(one[name][0] for one in limits), min(one[name][1] for one in limits)) for name in free}
        return cls(artifact, free, shared)

    def check(self, inputs: Mapping[str, _Shaped]) -> None:
        """Raise UsageError for inputs [N, ...] of a size that is not taken, with the command that widens the range."""
        found = {name: size for name, dimension in self.free.items() if (size := _size(inputs, dimension.axes[0])) is not None}
        self.check_sizes(found)
        for name, size in found.items():
            dimension = self.free[name]
            if dimension.of in found and size != dimension.following(found[dimension.of]):
                input_, axis = dimension.axes[0]
                raise UsageError(
                    f"dimension {axis} of '{input_}' is {size}, and beside a {dimension.of} of {found[dimension.of]} it is "
                    f"{dimension.following(found[dimension.of])}"
                )

    def _check_profiles(self, sizes: Mapping[str, int]) -> None:
        """Raise UsageError for sizes that none of an engine's several profiles takes."""
        for engine in of_kind([self.artifact, *self.artifact.members], EngineDetails):
            profiles = engine.details.profiles
            if profiles and not any(takes(profile, sizes) for profile in profiles):
                raise outside(engine, sizes)

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Raise UsageError for sizes, by name, that are not taken; what follows another is not judged."""
        self._check_profiles(sizes)
        for name, dimension in self.artifact.details.chosen.items():
            if name not in sizes:
                continue
            size, (least, largest) = sizes[name], self.limits[name]
            unit = f" ({unit})" if (unit := self.artifact.details.unit(name)) else ""
            input_ = dimension.axes[0][0]
            if not least <= size <= largest:
                raise UsageError(
                    f"the {name} of '{input_}' is {size}, and {self.artifact.path} takes sizes from {least} to {largest}{unit}",
                    self._wider(name, sizes),
                )
            below, above = (rounded * dimension.multiple for rounded in (size // dimension.multiple, -(-size // dimension.multiple)))
            if below != above:
                raise UsageError(
                    f"the {name} of '{input_}' is {size}, and the network takes multiples of {dimension.multiple}{unit}",
                    f"the nearest are {below} and {above}",
                )

    def _wider(self, name: str, sizes: Mapping[str, int]) -> str:
        size, (least, largest) = sizes[name], self.limits[name]
        member = next(iter(self.artifact.members), self.artifact)
        if is_kind(member, EngineDetails):
            details = member.details
            usual = details.sizes[name][1]
            bundle = member.manifest.details.get("bundle") or "BUNDLE"
            command = (
                f"dq-deploy build-engine {bundle} -o ENGINE --backend {details.backend} "
                f"{flag(name)} {min(least, size)},{usual},{max(largest, size)}"
            )
            alone = member is self.artifact
            return f"build one for it: {command}" if alone else f"build each member for it, such as {command}; and combine these"
        return f"calibrate there too: dq-deploy quantize SOURCE -o CHECKPOINT {self._asked(name, sizes)}"

    def _asked(self, name: str, sizes: Mapping[str, int]) -> str:
        """The calibrated sizes and lengths of text with ``sizes`` among them, as ``quantize`` takes them, in the first one's units."""
        if name == "tokens" and "max_sequence_length" not in self.artifact.details.picture_size:  # prompts that are not padded gave them
            return f"--prompts FILE, with a prompt of {sizes[name]} tokens among them"
        calibrated = [one for one in self.artifact.details.calibrated_sizes if one.calibrated]
        edges = [f"{one.size[0]}x{one.size[1]}" for one in calibrated if one.size is not None]
        tokens = [one.tokens for one in calibrated if one.tokens is not None]
        if name == "tokens" and tokens:  # there may be others before them, of another encoder
            tokens.append(sizes[name] - self.free[name].values[0] + tokens[0])
        else:
            edges.append(self._edges(sizes))
        found = [("--sizes", edges), ("--tokens", [str(length) for length in tokens])]
        return " ".join(f"{option} {','.join(dict.fromkeys(values))}" for option, values in found if values)

    def _edges(self, sizes: Mapping[str, int]) -> str:
        size = self.artifact.details.calibrated_sizes[0].size
        if size is None or not {"height", "width"} & self.free.keys():
            return "HEIGHTxWIDTH"
        first = zip(("height", "width"), size, strict=True)
        edges = (sizes[name] * edge // self.free[name].values[0] if name in sizes and name in self.free else edge for name, edge in first)
        return "x".join(map(str, edges))


def _size(inputs: Mapping[str, _Shaped], axis: tuple[str, int]) -> int | None:
    """Of an input's dimension; None where it is not given, or has no such dimension."""
    name, dim = axis
    shape = tuple(inputs[name].shape) if name in inputs else ()
    return int(shape[dim]) if dim < len(shape) else None
