"""The GPU as an engine's runner needs it: memory, a stream, events and graphs, all of them PyTorch's. Nothing else here touches CUDA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from ...errors import EnvironmentProblem
from ..layer_report.roofline import Peaks, peaks_of


class CudaDevice:
    """The first NVIDIA GPU. Raises EnvironmentProblem where PyTorch cannot use it."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise EnvironmentProblem(
                f"torch {torch.__version__} cannot use this machine's GPU, and TensorRT engines take their memory from it",
                "install a build of torch with CUDA",
            )
        self._stream = torch.cuda.Stream()

    @property
    def name(self) -> str:
        """The GPU's own name."""
        return torch.cuda.get_device_name()

    def peaks(self, capability: str) -> Peaks | None:
        """What the GPU can do at the most; None where PyTorch or the table does not know it."""
        properties = torch.cuda.get_device_properties()
        names = ("clock_rate", "memory_clock_rate", "memory_bus_width")
        clock_khz, memory_khz, bus_bits = (getattr(properties, name, None) for name in names)
        if not (clock_khz and memory_khz and bus_bits):
            return None
        return peaks_of(
            capability,
            multiprocessors=properties.multi_processor_count,
            clock_hz=1e3 * clock_khz,
            memory_hz=1e3 * memory_khz,
            bus_bits=bus_bits,
        )

    @property
    def stream(self) -> int:
        """Handle of the stream that all work goes to."""
        return self._stream.cuda_stream

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory on the GPU for a tensor of any shape."""
        return torch.empty(shape, dtype=dtype, device="cuda")

    def on_stream(self) -> AbstractContextManager[Any]:
        """Copies made inside go to the stream too."""
        context: AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return context

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

    def timed(self, work: Callable[[], None]) -> float:
        """Milliseconds that the GPU spends on ``work``, between two events on the stream."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(self._stream)
        work()
        end.record(self._stream)
        end.synchronize()
        return float(start.elapsed_time(end))

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """``work`` as a graph to replay. Raises RuntimeError when it cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            work()

        def replay() -> None:
            with self.on_stream():  # a graph is replayed on the current stream
                graph.replay()

        return replay
