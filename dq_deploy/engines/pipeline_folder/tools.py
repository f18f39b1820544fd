"""The tools that run a whole pipeline from a folder, and what each wants in it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...errors import UsageError

_EXPORTERS = {"onnx": "optimum-onnx", "openvino": "optimum-intel"}
_FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}


@dataclass(frozen=True)
class Tool:
    """``install`` is what pip takes; ``types``: inputs of the denoiser that take another type than the exporter has given them."""

    name: str
    install: str
    graph: Literal["onnx", "openvino"]
    types: dict[str, str] = field(default_factory=dict)

    @property
    def exporter(self) -> str:
        """The package whose ``optimum-cli`` writes the folder."""
        return _EXPORTERS[self.graph]

    @property
    def file(self) -> str:
        """A network in its own folder there."""
        return _FILES[self.graph]

    def arguments(self, source: str | Path, output: str | Path) -> list[str]:
        """Of ``optimum-cli``."""
        return ["export", self.graph, "--model", str(source), "--task", "text-to-image", str(output)]

    def command(self, source: str | Path, output: str | Path) -> str:
        """The command line that exports a pipeline."""
        return shlex.join(["optimum-cli", *self.arguments(source, output)])


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("optimum-onnx", "'optimum-onnx[onnxruntime]' diffusers", "onnx"),
        # Its pipelines compute timesteps in floats, and its exporter declares whole numbers, to which they would be cut.
        Tool("optimum-intel", "optimum-intel diffusers", "openvino", {"timestep": "float32"}),
        Tool("openvino-genai", "openvino-genai optimum-intel diffusers", "openvino"),
    )
}


def tool_named(name: str) -> Tool:
    """Raises UsageError for a tool that is not among them."""
    if name not in TOOLS:
        raise UsageError(f"unknown tool '{name}'", f"choose one of {', '.join(TOOLS)}")
    return TOOLS[name]
