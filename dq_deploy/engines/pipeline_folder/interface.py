"""What a tool's pipeline hands its denoiser, and whether our graph can be given that.

A tool that has exported a pipeline has written its own denoiser too: the inputs of that graph are what its pipeline gives. Ours is put in
its place behind a front that takes these very inputs: names, types and ranks are read, none is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ...errors import ArtifactError
from ...quantization.calibration.recording import UNBATCHED


@dataclass(frozen=True)
class Port:
    """An input: its numpy type, and its sizes, None where they are free."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} [{sizes}]"


class Front(Enum):
    """What stands between an input as the tool gives it and as our graph takes it."""

    SAME = "its own sizes"
    EACH_SAMPLE = "a number for the whole batch, repeated for each sample"
    SHARED = "the same for every sample, repeated for each"


def fronts(ours: Sequence[Port], theirs: Sequence[Port], bundle: Path, exported: Path) -> Mapping[str, Front]:
    """For each input of ours, by name, what has to stand in front of it.

    Raises ArtifactError, naming every input that does not fit: it is of another network then, or of another size.
    """
    given = {port.name: port for port in theirs}
    problems = [f"{exported} gives no '{port.name}', which {bundle} takes" for port in ours if port.name not in given]
    problems += [f"{exported} gives {port}, which {bundle} does not take" for port in theirs if port.name not in {own.name for own in ours}]
    found = {}
    for own in ours:
        if own.name in given:
            front = _front(own, given[own.name])
            if front is None:
                problems.append(f"{exported} gives {given[own.name]}, and {bundle} takes {own}")
            else:
                found[own.name] = front
    if problems:
        hint = "give the folder that was exported from the pipeline that the bundle was made of, at its size"
        raise ArtifactError("; ".join(problems), hint)
    return found


def _front(own: Port, given: Port) -> Front | None:
    if len(own.shape) == 1 and len(given.shape) <= 1:
        return Front.EACH_SAMPLE
    if own.name in UNBATCHED and len(given.shape) == len(own.shape) - 1:
        return Front.SHARED if _agree(own.shape[1:], given.shape) else None
    return Front.SAME if len(own.shape) == len(given.shape) and _agree(own.shape[1:], given.shape[1:]) else None


def _agree(own: Sequence[int | None], given: Sequence[int | None]) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(own, given, strict=True))
