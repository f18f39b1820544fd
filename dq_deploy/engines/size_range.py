"""The sizes that an artefact takes where heights, widths or tokens are free, and which command makes one that takes another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..artifacts import Artifact, is_kind
from ..artifacts.details import Details, EngineDetails, FreeDimension
from ..errors import UsageError


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
        """What an engine was built for, or what else was calibrated."""
        built = artifact.details.sizes if is_kind(artifact, EngineDetails) else {}
        free = artifact.details.free
        ranges = {name: built.get(name, dimension.range) for name, dimension in free.items()}
        return cls(artifact, free, {name: (least, largest) for name, (least, _, largest) in ranges.items()})

    def check(self, inputs: Mapping[str, _Shaped]) -> None:
        """Raise UsageError for inputs [N, ...] of a size that is not taken, with the command that widens the range."""
        for name, dimension in self.free.items():
            input_, axis = dimension.axes[0]
            size = tuple(inputs[input_].shape)[axis] if input_ in inputs and len(inputs[input_].shape) > axis else None
            if size is None:
                continue
            least, largest = self.limits[name]
            if not least <= size <= largest:
                raise UsageError(
                    f"the {name} of '{input_}' is {size}, and {self.artifact.path} takes sizes from {least} to {largest}",
                    self._wider(name, size, inputs),
                )
            below, above = (rounded * dimension.multiple for rounded in (size // dimension.multiple, -(-size // dimension.multiple)))
            if below != above:
                raise UsageError(
                    f"the {name} of '{input_}' is {size}, and the network takes multiples of {dimension.multiple}",
                    f"the nearest are {below} and {above}",
                )

    def _wider(self, name: str, size: int, inputs: Mapping[str, _Shaped]) -> str:
        least, largest = self.limits[name]
        if is_kind(self.artifact, EngineDetails):
            details = self.artifact.details
            usual = details.sizes[name][1]
            bundle = self.artifact.manifest.details.get("bundle") or "BUNDLE"
            return (
                f"build one for it: dq-deploy build-engine {bundle} -o ENGINE --backend {details.backend} "
                f"--{name} {min(least, size)},{usual},{max(largest, size)}"
            )
        asked = [str(one) for one in self.artifact.details.calibrated_sizes if one.calibrated]
        return f"calibrate there too: dq-deploy quantize SOURCE -o CHECKPOINT --sizes {','.join(asked)},{self._asked(inputs)}"

    def _asked(self, inputs: Mapping[str, _Shaped]) -> str:
        """The size of ``inputs`` as ``--sizes`` takes it, in the units of the first calibrated one."""
        if not {"height", "width"} & self.free.keys():
            return "HEIGHTxWIDTH"
        first = zip(("height", "width"), self.artifact.details.calibrated_sizes[0].size, strict=True)
        return "x".join(str(self._edge(name, edge, inputs) if name in self.free else edge) for name, edge in first)

    def _edge(self, name: str, first: int, inputs: Mapping[str, _Shaped]) -> int:
        input_, axis = self.free[name].axes[0]
        return int(tuple(inputs[input_].shape)[axis]) * first // self.free[name].values[0]
