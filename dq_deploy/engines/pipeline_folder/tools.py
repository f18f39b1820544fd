"""The tools that run a whole pipeline from a folder, and what each wants in it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...errors import UsageError


@dataclass(frozen=True)
class Tool:
    """``exporter`` is the package whose ``optimum-cli`` writes the folder, ``file`` a network in it.

    ``types``: inputs of the denoiser that take another type than the exporter has given them.
    """

    name: str
    exporter: str
    install: str
    graph: Literal["onnx", "openvino"]
    file: str
    options: tuple[str, ...]
    types: dict[str, str] = field(default_factory=dict)

    def arguments(self, source: str | Path, output: str | Path) -> list[str]:
        """Of ``optimum-cli``."""
        return ["export", self.graph, "--model", str(source), *self.options, str(output)]

    def command(self, source: str | Path, output: str | Path) -> str:
        """The command line that exports a pipeline."""
        return shlex.join(["optimum-cli", *self.arguments(source, output)])


_IR = {
    "exporter": "optimum-intel", "graph": "openvino", "file": "openvino_model.xml", "options": ("--task", "text-to-image"),
}  # fmt: skip
TOOLS = {
    tool.name: tool
    for tool in (
        Tool("optimum-onnx", "optimum-onnx", "'optimum-onnx[onnxruntime]' diffusers", "onnx", "model.onnx", ("--task", "text-to-image")),
        # Its pipelines compute timesteps in floats, and its exporter declares whole numbers, to which they would be cut.
        Tool("optimum-intel", install="optimum-intel diffusers", types={"timestep": "float32"}, **_IR),  # type: ignore[arg-type]
        Tool("openvino-genai", install="openvino-genai optimum-intel diffusers", **_IR),  # type: ignore[arg-type]
    )
}


def tool_named(name: str) -> Tool:
    """Raises UsageError for a tool that is not among them."""
    if name not in TOOLS:
        raise UsageError(f"unknown tool '{name}'", f"choose one of {', '.join(TOOLS)}")
    return TOOLS[name]
