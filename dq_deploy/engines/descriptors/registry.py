"""The table of the inference engines: what can be requested by name, what is found by ``doctor``, what builds and what runs.

To add an engine, write a room with a runner (``GraphRunner``, running/runner.py), if it builds a child process (build/request.py), and a
``descriptor.py`` that makes an ``EngineDescriptor`` of them; then either

- here: add the descriptor to ``_BUILT_IN``, its extra to pyproject.toml, and what its vendor documents to docs/engines.md;
- from another package: ``dq_deploy.engines.descriptors.registry.register(descriptor)``, or an entry point, which every command finds:

      [project.entry-points."dq_deploy.engines"]
      mine = "my_package.descriptor:ENGINE"

Everything else (choices of the command line, ``doctor``, ``bench``, ``build-engine``, ``triton-repository``) asks this table.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import entry_points
from pkgutil import resolve_name

from ...errors import EnvironmentProblem, UsageError, did_you_mean
from .descriptor import EngineDescriptor

GROUP = "dq_deploy.engines"
# By name, as entry points are: the rooms import what all engines share, and that asks this table.
_BUILT_IN = (
    "onnxruntime.descriptor:ONNXRUNTIME",
    "onnxruntime.descriptor:CUDA",
    "onnxruntime.descriptor:TENSORRT_PROVIDER",
    "tensorrt.descriptor:TENSORRT_RTX",
    "tensorrt.descriptor:TENSORRT",
    "openvino.descriptor:OPENVINO",
    "openvino.descriptor:OPENVINO_INT8",
)
_TABLE: dict[str, EngineDescriptor] = {
    engine.name: engine for engine in (resolve_name(f"dq_deploy.engines.{reference}") for reference in _BUILT_IN)
}
REFERENCE = _TABLE["onnxruntime"]
"""What runs every bundle where no other engine is faster, and what the others are compared with."""
DEFAULT_BUILDER = _TABLE["tensorrt-rtx"]
"""It needs no GPU."""


def register(engine: EngineDescriptor) -> EngineDescriptor:
    """Add an engine to the table. Raises UsageError where the name is taken by another."""
    if _TABLE.setdefault(engine.name, engine) != engine:
        raise UsageError(f"there is an engine '{engine.name}' already", "give yours another name")
    return engine


@functools.cache
def broken() -> dict[str, str]:
    """Register what other packages offer by entry points; those that cannot be, with the reason."""
    found = {}
    for point in entry_points(group=GROUP):
        try:
            register(point.load())
        except Exception as error:  # noqa: BLE001  another's package must not end every command
            found[point.name] = f"{point.value} does not load: {type(error).__name__}: {error}"
    return found


def engines() -> dict[str, EngineDescriptor]:
    """Every engine by name, those of other packages too."""
    broken()
    return _TABLE


def engine_named(name: str, among: Mapping[str, EngineDescriptor] | None = None, what: str = "engine") -> EngineDescriptor:
    """The engine of that name. Raises UsageError (none of ``among``, all by default) or EnvironmentProblem (another package's, broken)."""
    table = engines() if among is None else among
    if name in table:
        return table[name]
    if name in broken():
        raise EnvironmentProblem(f"engine {name} of another package cannot be used: {broken()[name]}", "reinstall that package")
    raise UsageError(f"unknown {what} '{name}'", f"{did_you_mean([name], table)}choose one of: {', '.join(table)}")


def runtimes() -> dict[str, EngineDescriptor]:
    """The engines that run bundles, by name; settings of one apart."""
    return {name: engine for name, engine in engines().items() if "bundle" in engine.runs and not engine.variant_of}


def builders() -> dict[str, EngineDescriptor]:
    """The engines that bundles can be built for, by name."""
    return {name: engine for name, engine in engines().items() if engine.builder and not engine.variant_of}


def builder_named(name: str) -> EngineDescriptor:
    """The engine of that name, which can be built. Raises as ``engine_named`` does."""
    return engine_named(name, builders(), "engine backend")
