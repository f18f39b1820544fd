"""Options of a build. An engine takes those that its descriptor lists; any other is refused with the reason, never ignored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ...artifacts.records import Record
from ...errors import UsageError
from ..descriptors.registry import builder_named, builders

Int8Kernels = Literal["auto", "always", "never"]
HardwareCompatibility = Literal["ampere-plus", "same-compute-capability"]


class BuildOptions(Record):
    """What is None or False was not requested, and is left to the builder.

    TensorRT and TensorRT-RTX:
    ``optimization_level``: 0 (fastest build) to 5 (most tactics tried).
    ``workspace_mb``: MiB of GPU memory that a tactic may use for itself.
    ``weight_streaming``: weights may stay in host memory, and are copied to the GPU as a run needs them.

    TensorRT alone:
    ``timing_cache``: file of kernel timings, read before and completed after a build; builds may share it.
    ``hardware_compatibility``: run on every GPU from Ampere on, or on every one of the same compute capability.
    ``version_compatible``: run on later TensorRTs of the same major version too.

    OpenVINO:
    ``int8_kernels``: whether quantized layers are computed with INT8 kernels. "auto" takes them unless they saturate on the CPU that
    loads the engine (``OpenVinoRunner``), "always" even then, "never" computes in float.
    """

    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    workspace_mb: Annotated[int, Field(ge=1)] | None = None
    weight_streaming: bool = False
    timing_cache: Path | None = None
    hardware_compatibility: HardwareCompatibility | None = None
    version_compatible: bool = False
    int8_kernels: Int8Kernels | None = None

    @classmethod
    def build(cls, backend: str, **given: Any) -> BuildOptions:
        """The options, when the backend has all that are given. Raises UsageError naming every one that it lacks, and bad values."""
        try:
            options = cls(**given)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc']))} is {e['input']!r}: {e['msg']}" for e in error.errors()]
            raise UsageError("; ".join(problems), "see: dq-deploy build-engine --help") from None
        builder = builder_named(backend).building
        if refused := [name for name in options.asked() if name not in builder.options]:
            reasons = [builder.refused[name] for name in refused if name in builder.refused]
            reasons += [f"{flag(name)} is for {' and '.join(who_has(name))}" for name in refused]
            raise UsageError(f"backend {backend} has no {', '.join(map(flag, refused))}", "; ".join(reasons))
        if options.timing_cache is not None:
            _check_cache_file(options.timing_cache)
        return options

    def asked(self) -> dict[str, Any]:
        """What was requested, by name."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value is not None and value is not False}

    @property
    def integer(self) -> bool | None:
        """``int8_kernels`` as OpenVinoRunner has it."""
        return {"always": True, "never": False}.get(self.int8_kernels or "auto")


def who_has(option: str) -> list[str]:
    """The engines whose builders have an option."""
    return [name for name, engine in builders().items() if option in engine.building.options]


def _check_cache_file(path: Path) -> None:
    """Refuse a timing cache that could not be written, before the long step."""
    if path.is_dir():
        raise UsageError(f"the timing cache {path} is a folder, and a file is needed")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"the timing cache {path} cannot be written: there is no folder {path.absolute().parent}")
    writable = os.access(path, os.R_OK | os.W_OK) if path.exists() else True
    if not writable or not os.access(path.absolute().parent, os.W_OK):
        raise UsageError(f"the timing cache {path} cannot be written: no permission", "copy it to a folder of your own")


def flag(name: str) -> str:
    """An option as the command line has it."""
    return "--" + name.replace("_", "-")
