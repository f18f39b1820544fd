"""A graph compiled once for each of the shapes that it is run at: where every dimension is known, OpenVINO fuses what is between products.

The built-in UNet at W8A8 has 840 kernels with an open batch, and 603 at a fixed one: chains of multiplications, roundings and additions
(a timestep's scales) become one kernel each (benchmarks/latency has what selecting them costs).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..running.runner import Array
from .layouts import as_declared

Shapes = tuple[tuple[int, ...], ...]
Compile = Callable[[Mapping[str, tuple[int, ...]] | None], Any]
"""Compile the graph for shapes by input, or with its open dimensions."""

MOST_SHAPES = 4
"""Shapes that a graph is compiled for, each with weights of its own; others run with open dimensions."""
_BYTES = 1 << 30


def shapes_for(weights_bytes: int) -> int:
    """How many shapes a graph with so many bytes of weights is compiled for: a GiB's worth, one at the least."""
    return max(1, min(MOST_SHAPES, _BYTES // max(weights_bytes, 1)))


class ShapedModels:
    """The compiled models of one graph. A shape is compiled when it first comes; a graph without open dimensions once.

    May be run by several threads at once: each run has an inference request of its own.
    """

    def __init__(self, compile_for: Compile, *, dynamic: bool, most: int = MOST_SHAPES) -> None:
        self._compile_for, self._dynamic, self._most = compile_for, dynamic, most
        self._models: dict[Shapes | None, _Model] = {}
        self._compiling = threading.Lock()

    def infer(self, feeds: Mapping[str, Array]) -> list[Array]:
        """All outputs [N, ...] for inputs [N, ...] by name. Raises RuntimeError, and what compiling raises."""
        return self._for(feeds).infer(feeds)

    def any(self) -> Any:
        """A compiled model: one that was run, or else with the open dimensions."""
        if not self._models:
            self._add(None, None)
        return next(iter(self._models.values())).compiled

    def _for(self, feeds: Mapping[str, Array]) -> _Model:
        shapes = {name: tuple(value.shape) for name, value in feeds.items()}
        key = tuple(shapes.values()) if self._dynamic else None
        return self._models.get(key) or self._add(key, shapes if key else None)

    def _add(self, key: Shapes | None, shapes: Mapping[str, tuple[int, ...]] | None) -> _Model:
        with self._compiling:  # another thread may have been first, with this shape or with the last one that there is room for
            if key not in self._models and len(self._models.keys() - {None}) >= self._most:
                key, shapes = None, None
            if key not in self._models:
                self._models[key] = _Model(self._compile_for(shapes))
            return self._models[key]


class _Model:
    """A compiled model and its inference requests that are free."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._new = _OpenRequest if any(port.get_partial_shape().is_dynamic for port in compiled.inputs) else _FixedRequest
        self._idle = [self._new(compiled.create_infer_request())]

    def infer(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            request = self._idle.pop()  # of a list: one step, so two threads never get the same
        except IndexError:
            request = self._new(self.compiled.create_infer_request())
        try:
            return request.infer(feeds)
        finally:
            self._idle.append(request)


class _OpenRequest:
    """An inference request whose inputs may have any size."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def infer(self, feeds: Mapping[str, Array]) -> list[Array]:
        results = self._request.infer(feeds, share_inputs=True)
        return [np.array(results[index]) for index in range(len(results))]  # copies: the next run overwrites the request's own


class _FixedRequest:
    """An inference request whose inputs' and outputs' memory is known: copying there saves the 0.1 to 0.2 ms of handing over arrays."""

    def __init__(self, request: Any) -> None:
        self._request = request
        ports = enumerate(request.model_inputs)
        self._inputs = {name: as_declared(port, request.get_input_tensor(index).data) for index, port in ports for name in port.names}
        self._outputs = [as_declared(port, request.get_output_tensor(index).data) for index, port in enumerate(request.model_outputs)]

    def infer(self, feeds: Mapping[str, Array]) -> list[Array]:
        for name, value in feeds.items():
            self._inputs[name][...] = value
        self._request.infer(share_outputs=True)
        return [output.copy(order="K") for output in self._outputs]
