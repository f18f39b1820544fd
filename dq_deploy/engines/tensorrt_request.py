"""What ``build.py`` asks of its child process, and what the child leaves behind."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Backend = Literal["tensorrt-rtx", "tensorrt"]
Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]


class BuildRequest(BaseModel):
    """One build. ``profile`` maps every graph input to its (min, opt, max) shapes.

    ``compute_capability`` is the (major, minor) to compile for; None means the GPU of this machine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    backend: Backend
    onnx: str
    plan: str
    result: str
    compute_capability: tuple[int, int] | None
    profile: dict[str, ShapeRange]


class BuildResult(BaseModel):
    """Written once the plan is on disk: a build has succeeded when this exists and the plan has this hash, whatever the exit code says."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    plan_sha256: str
    version: str
    compute_capability: tuple[int, int]
