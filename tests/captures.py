"""torch.export runs once for each network of a worker: tests quantize and export the same tiny ones again and again.

What follows it (the check against the model at other batches, the rewrites, the plan) runs for every capture. With ``--nightly`` each one
is exported from the start, and so is a network that cannot be told from another one: one with a class or a function of a test's own.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from dq_deploy.quantization.graph import capture

_EXPORTED = capture.exported
_MOST = 128
"""Networks that a worker keeps; the first of them goes for the next."""
_DECIDES = 16
"""Parameters of so few values are hashed with them: a branch may be taken by one. What has more is read by its shape."""


@pytest.fixture(scope="session", autouse=True)
def captured_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep what torch.export makes of a network."""
    found: dict[str, tuple[GraphModule, list[torch.Tensor]]] = {}

    def kept(wrapper: nn.Module, tensors: Sequence[torch.Tensor], free: Sequence[Collection[int]] = ()) -> GraphModule:
        key = _key(wrapper, tensors, free)
        if key is None:
            return _EXPORTED(wrapper, tensors, free)
        own = _state(wrapper)
        if key not in found:
            if len(found) == _MOST:
                del found[next(iter(found))]
            found[key] = _EXPORTED(wrapper, tensors, free), own
        graph, state = found[key]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own specs of arguments, as they are copied
            return deepcopy(graph, {id(before): now for before, now in zip(state, own, strict=True)})

    with pytest.MonkeyPatch.context() as patch:
        if not request.config.getoption("--nightly"):
            patch.setattr(capture, "exported", kept)
        yield


def _state(module: nn.Module) -> list[torch.Tensor]:
    """Every parameter and buffer, which the graph has for its own."""
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return [tensor for _, tensor in named]


def _key(wrapper: nn.Module, tensors: Sequence[torch.Tensor], free: Sequence[Collection[int]]) -> str | None:
    """A hash of everything that the exporter reads: the network with its attributes, buffers and hooks, the inputs, torch's own settings.

    None where there is something in it that has no name, a local class say.
    """
    settings = (
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_inference_mode_enabled(),
    )
    file = io.BytesIO()
    try:
        _Pickler(file).dump((wrapper, list(tensors), [sorted(dims) for dims in free], settings))
    except Exception:  # noqa: BLE001  as many kinds as there are objects in a network
        return None
    return hashlib.sha256(file.getvalue()).hexdigest()


class _Pickler(pickle.Pickler):
    """Tensors as shapes and hashes of their values, and which of them are one; equal strings are equal, be they one object or two."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.fast = True
        self._tensors: dict[int, int] = {}

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        index = self._tensors.setdefault(id(obj), len(self._tensors))
        kind = index, type(obj).__name__, str(obj.dtype), list(obj.shape), list(obj.stride()), obj.requires_grad
        if isinstance(obj, nn.Parameter) and obj.numel() > _DECIDES:
            return repr, (kind,)
        data = obj.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        return repr, ((*kind, hashlib.sha256(data).hexdigest()),)
