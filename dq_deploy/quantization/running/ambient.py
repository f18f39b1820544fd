"""What a caller has set for the whole of torch: none of it may change a result, and all of it is as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def default_torch() -> Iterator[None]:
    """Without the caller's inference mode, autocast, default type and default device; the random state comes back."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.random.fork_rng(enabled=True))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def without_autocast() -> Iterator[list[Any]]:
    """While it lasts, a ``torch.autocast`` that a model enters changes nothing. Gives a list of those that would have.

    Which type a product is computed in is a matter of the engine; a graph says what is computed.
    """
    entered: list[Any] = []
    kind: Any = torch.amp.autocast_mode.autocast
    enter, leave = kind.__enter__, kind.__exit__

    def enter_nothing(self: Any) -> Any:
        if self._enabled:
            entered.append(self)
        return self

    kind.__enter__, kind.__exit__ = enter_nothing, lambda *_: None
    try:
        yield entered
    finally:
        kind.__enter__, kind.__exit__ = enter, leave
