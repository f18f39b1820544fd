"""What a checkpoint's manifest says of the final sample's error, and which steps make it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import Field

from .records import Open


class StepCost(Open):
    """A step, or of many steps some neighbouring ones, and what its error costs the final sample, in dB of SNR (None: no finite number).

    ``only_db``: with nothing else quantized. ``without_db``: with everything else quantized, of the dearest few. ``share``: of the error
    powers that the steps make alone, this one's; these add up to the whole error only where errors are small and have nothing to do with
    each other. ``member``: of a schedule, who runs it.
    """

    timesteps: list[float] = Field(min_length=1)
    only_db: float | None
    without_db: float | None = None
    member: str | None = None
    share: float | None = Field(default=None, ge=0)

    @property
    def span(self) -> str:
        """Its timestep, or the first and last of several."""
        low, high = self.timesteps[0], self.timesteps[-1]
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"


class FinalError(Open):
    """SNR of the final samples against the float model's from the same seeds, with all steps quantized and by step, ascending.

    ``not_measured`` says why there is nothing in it.
    """

    all_db: float | None = None
    steps: list[StepCost] = Field(default_factory=list)
    seeds: int = Field(default=0, ge=0)
    not_measured: str | None = None

    @property
    def worst(self) -> StepCost | None:
        """The step with the largest share; None without one."""
        return max((step for step in self.steps if step.share is not None), key=lambda step: step.share or 0.0, default=None)

    @property
    def drawn(self) -> str:
        """How many seeds, in words."""
        return f"{self.seeds} seed" + ("s" if self.seeds != 1 else "")

    @property
    def summary(self) -> str:
        """In a line."""
        if self.not_measured is not None:
            return f"not measured: {self.not_measured}"
        if self.all_db is None or self.worst is None:
            return "no finite number"
        share = self.worst.share or 0.0
        without = "" if self.worst.without_db is None else f" ({self.worst.without_db:.1f} dB without)"
        return f"{self.all_db:.1f} dB ({self.drawn}); timestep {self.worst.span} makes {share:.0%} of the steps' separate errors{without}"

    @property
    def quality(self) -> str:
        """How near the final sample comes to the float model's, as a user reads it; empty where that was not measured."""
        if self.all_db is None:
            return ""
        error = 10 ** (-self.all_db / 20)
        return f"the final sample has {self.all_db:.1f} dB of SNR against the float model's: an error of {error:.1%} of its size"


def combined(turns: Sequence[tuple[str, Sequence[float], FinalError]]) -> FinalError | None:
    """What the steps of a schedule cost by what its members' cost alone; ``turns``: a member's name, the timesteps that it runs, its own.

    The final sample's whole error was not measured: ``all_db`` is None. Of steps that were measured together, those whose middle one a
    member runs are its. Steps that are run in float cost nothing, and are not there. None where nothing was measured.
    """
    steps = [
        step.model_copy(update={"member": name, "without_db": None})
        for name, timesteps, found in turns
        for step in found.steps
        if step.timesteps[len(step.timesteps) // 2] in timesteps
    ]
    if not steps:
        return None
    powers = [None if step.only_db is None else 10 ** (-step.only_db / 10) for step in steps]
    total = math.fsum(power for power in powers if power is not None)
    shared = [
        step.model_copy(update={"share": None if power is None or not total else round(power / total, 6)})
        for step, power in zip(steps, powers, strict=True)
    ]
    return FinalError(steps=sorted(shared, key=lambda step: step.timesteps), seeds=max(found.seeds for _, _, found in turns))


def most_clipped(clipped: Mapping[str, Sequence[float]], timesteps: Sequence[float]) -> str:
    """The largest share of held-out values that a quantizer clips, in words; ``clipped`` by quantizer and row of ``timesteps``."""
    found = max(((share, name, t) for name, shares in clipped.items() for share, t in zip(shares, timesteps, strict=True)), default=None)
    if found is None:
        return "no value"
    share, name, timestep = found
    return f"{share:.3%} of the values of {name} at timestep {timestep:g}, at the most"
