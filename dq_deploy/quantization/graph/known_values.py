"""Values that a forward takes out of tensors which no input has a part in: ``if mask.all()`` of a mask that is a buffer, or all zeros.

torch.export knows no tensor's values, and refuses to capture such a branch (that of ``nn.TransformerDecoder`` with a mask is one). But
the value is the same at every call. It is read from a run of the model and given to torch.export at the same place.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...errors import raise_if_out_of_memory
from .shapes import resized

_READS = frozenset({
    torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__, torch.Tensor.item, torch.Tensor.tolist,
    torch.Tensor.equal, torch.Tensor.allclose, torch.equal, torch.allclose, torch.is_nonzero,
})  # fmt: skip
_BATCHES = (2, 3)

Place = tuple[str, int, str]
"""File and line of the code that reads a value, and by which function."""
Values = dict[Place, list[Any]]
"""What is read at each place, in order."""
Made = tuple[Any, ...] | None
"""What an operator made, summed up; None: from the inputs."""


@torch.no_grad()
def known_values(wrapper: nn.Module, tensors: Sequence[torch.Tensor]) -> Values:
    """The values that ``wrapper(*tensors)`` reads, unless one of them depends on the values of the tensors [N, ...], or on N."""
    found: list[Values] = []
    made: list[Made] = []
    for batch in _BATCHES:
        with _Influence(resized(tensors, batch), made) as influence, _Reader(influence) as reader:
            try:
                wrapper(*influence.inputs)
            except Exception as error:  # noqa: BLE001  a model may call what cannot be followed
                raise_if_out_of_memory(error)
                return {}
        if influence.escaped:
            return {}
        made = influence.made
        found.append(reader.found)
    first, second = found
    return {place: values for place, values in first.items() if second.get(place) == values}


class Given(TorchFunctionMode):
    """Answers what is read at the places of ``known``, each in its order; what is read elsewhere, torch answers.

    ``Tensor.tolist`` is not asked for here while torch.export runs, which has one of its own.
    """

    def __init__(self, known: Values) -> None:
        super().__init__()
        self.left = {place: list(values) for place, values in known.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS and (values := self.left.get(_place(func))):
            return values.pop(0)
        return func(*args, **(kwargs or {}))


class _Influence(TorchDispatchMode):
    """Follows which memory the inputs have a part in, operator by operator. ``escaped``: a value of theirs became a number.

    N has a part in what is made without the inputs and differs from what was ``made_before`` in a run of another N: in its values, or in
    its shape unless all of it is one value, as a mask of N zeros is.
    """

    def __init__(self, inputs: Sequence[torch.Tensor], made_before: Sequence[Made] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inputs, self.escaped = inputs, False
        self.made: list[Made] = []
        self._before = made_before
        self._reached: dict[int, torch.UntypedStorage] = {}  # which stays, so that its address is no other's
        self._reach(inputs)

    def reaches(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether the inputs have a part in any of the tensors."""
        return any(t.untyped_storage()._cdata in self._reached for t in tensors)

    def _reach(self, tensors: Sequence[torch.Tensor]) -> None:
        self._reached |= {storage._cdata: storage for storage in (t.untyped_storage() for t in tensors)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = _tensors((args, kwargs))
        result = func(*args, **(kwargs or {}))
        reached = self.reaches(read)
        if self._differs(result, reached=reached) or reached:
            self._reach([*_tensors(result), *(read if func._schema.is_mutable else [])])
            self.escaped |= func is torch.ops.aten._local_scalar_dense.default
        return result

    def _differs(self, result: Any, *, reached: bool) -> bool:
        """Note what an operator made without the inputs (None: with them), and say whether it made something else before."""
        with torch._C.DisableTorchFunction():
            self.made.append(None if reached else tuple(_summary(t) for t in _tensors(result)))
        at = len(self.made) - 1
        return not reached and bool(self._before) and (at >= len(self._before) or self._before[at] != self.made[at])


class _Reader(TorchFunctionMode):
    """Notes what is read, and where."""

    def __init__(self, influence: _Influence) -> None:
        super().__init__()
        self.influence = influence
        self.found: Values = defaultdict(list)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _READS:
            self.influence.escaped |= self.influence.reaches(_tensors((args, kwargs)))
            self.found[_place(func)].append(result)
        return result


def _summary(t: torch.Tensor) -> Any:
    """Of a tensor that is one value everywhere, that; else its shape and a hash of its values."""
    flat = t.reshape(-1)
    if not len(flat) or bool((flat == flat[0]).all()):
        return flat[:1].tolist()
    return tuple(t.shape), hashlib.sha256(flat.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _place(func: Any) -> Place:
    """Where a value is read: the frame below those of the function modes, of which torch.export has its own."""
    frame: Any = sys._getframe(2)
    while frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno, func.__name__
