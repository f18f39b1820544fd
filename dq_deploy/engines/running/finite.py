"""NaN and infinity at a graph's inputs. A quantizer turns them into codes like any other, so they are looked for before a graph sees them.

Looking costs one pass over each input: microseconds, beside a network that passes over it hundreds of times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ...errors import UsageError

if TYPE_CHECKING:
    from .runner import Array, InputSpec

Nonfinite = Literal["refuse", "propagate"]
"""What a runner does with samples that are not finite: refuse the batch, or give NaN for them, as a float model does."""

_HINT = 'find what made them (often a scheduler\'s first or last step); nonfinite="propagate" gives NaN for such samples instead'


def checked(nonfinite: Nonfinite) -> Nonfinite:
    """Raises UsageError for any other word."""
    if nonfinite not in get_args(Nonfinite):
        raise UsageError(f"unknown way '{nonfinite}' to treat what is not finite", f"choose {' or '.join(get_args(Nonfinite))}")
    return nonfinite


def spoiled(specs: Sequence[InputSpec], feeds: Mapping[str, Array], nonfinite: Nonfinite) -> Any:
    """Which samples are not finite in some input [N, ...]: an index of the output's first dimension, as bool [N]; None for none.

    An input without a batch dimension spoils all of them. Raises UsageError, naming every such input, unless they are to propagate.
    """
    floats = (spec for spec in specs if feeds[spec.name].dtype.kind == "f")
    found = [(spec, bad) for spec in floats if (bad := _not_finite(spec, feeds[spec.name])) is not None]
    if not found:
        return None
    if nonfinite == "refuse":
        raise UsageError("; ".join(_described(spec, feeds[spec.name], bad) for spec, bad in found), _HINT)
    samples: Any = False
    for spec, bad in found:
        if not spec.batched:
            return slice(None)
        samples = samples | bad.reshape(len(bad), -1).any(axis=1)
    return samples


def _not_finite(spec: InputSpec, array: Array) -> Array | None:
    """Where an input is not finite; None for nowhere. A mask says with minus infinity what attention passes over."""
    finite = np.isfinite(array)
    if finite.all():
        return None
    bad = ~finite & ~np.isneginf(array) if "mask" in spec.name else ~finite
    return bad if bad.any() else None


def _described(spec: InputSpec, array: Array, bad: Array) -> str:
    first = np.unravel_index(int(np.argmax(bad)), bad.shape)
    place = ", ".join(str(int(index)) for index in first)
    count = int(bad.sum())
    values = "1 value that is" if count == 1 else f"{count} values that are"
    return f"input '{spec.name}' has {values} not finite in {array.dtype}, the first {array[first]} at [{place}]"
