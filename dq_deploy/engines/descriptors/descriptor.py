"""What the rest of the program asks of an inference engine: one frozen record for each, in its room's ``descriptor.py``.

Functions and classes are given as "module:name" and imported when they are needed, so that the table of all engines loads neither torch
nor an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

from ...errors import EnvironmentProblem
from ...versions import install_command

if TYPE_CHECKING:
    from pathlib import Path

    from ...artifacts import Artifact
    from ...artifacts.details import BundleDetails
    from ..running.runner import GraphRunner

Reference = str
"""A function or class as "module:name"."""
Op = Literal["conv", "gemm"]
FLOATS = ("fp32", "fp16", "bf16")
"""Formats that every engine computes in. Which of them it takes for a product that was left in float is its own choice."""


@dataclass(frozen=True)
class Products:
    """Products whose two operands an engine takes in a number format other than ``FLOATS``.

    ``documented``: its vendor documents that they are computed in that format. Where it does not, the layer report says what happened to
    them. ``capability`` is the lowest compute capability (major, minor) of the GPUs meant; of ``instructions`` a CPU needs one.
    ``planned`` is the lowest one for which our tests have seen its builder plan them, ``executed`` says that they have run them.
    """

    format: str
    ops: tuple[Op, ...] = ("conv", "gemm")
    documented: bool = False
    capability: tuple[int, int] | None = None
    instructions: tuple[str, ...] = ()
    planned: tuple[int, int] | None = None
    executed: bool = False

    def on(self, device: str | None, instructions: Sequence[str] | None) -> bool:
        """Whether a device is among those meant: a GPU by its compute capability ("8.9"), a CPU (None) by its instructions, if known."""
        if device is not None:
            return self.capability is None or capability_of(device) >= self.capability
        return not self.instructions or instructions is None or bool(set(self.instructions) & set(instructions))


@dataclass(frozen=True)
class Evidence:
    """What is known of a format on a device: its vendor documents it, our tests have seen it planned by the builder, or run."""

    documented: bool
    planned: bool
    executed: bool

    def __str__(self) -> str:
        """In words."""
        return ", ".join(name for name in ("documented", "planned", "executed") if getattr(self, name)) or "taken, not documented"


@dataclass(frozen=True)
class Triton:
    """The backend of NVIDIA's Triton that runs an engine's file; ``device`` is the only one that it runs on, if there is but one."""

    backend: str
    file: str
    platform: str = ""
    device: Literal["cpu", "gpu"] | None = None


@dataclass(frozen=True)
class Builder:
    """How bundles become engines.

    ``child``: the module that a process of its own runs, ``python -m child request.json`` (build/request.py). ``target``: of the bundles
    that it takes. ``file``: the engine's name in its folder; one for a compute capability has that in its name too. ``options``: those of
    BuildOptions that it has, ``refused``: why it lacks another. ``statement``: what its layer report is. ``reads``: whether an installed
    version reads an engine that another has built: (installed, built with, built version-compatible).

    ``compute_capabilities`` are those that it builds for without a GPU, ``default_capabilities`` those of them that are built for unasked;
    ``elsewhere`` has the hint for others, ``otherwise`` names the engine that is built for those. Without any it builds for the ``device``
    of the machine that it runs on.

    ``kernels`` reads them from the child's log (str → LayerDump or None), where the child does not report them; ``details`` are what the
    manifest says beyond what every engine's does (Artifact → dict). ``fuse`` rewrites a bundle's graph for its fused attention, and says
    what is planned for each (onnx_ir.Model, BundleDetails, capabilities → list of AttentionPlan); without it the graph is built as it is.
    ``profiles``: an engine may have several, each with kernels of its own.
    """

    child: str
    target: str
    file: str
    statement: str
    reads: Callable[[str, str, bool], bool]
    device: str
    options: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    compute_capabilities: tuple[str, ...] = ()
    default_capabilities: tuple[str, ...] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    otherwise: str | None = None
    kernels: Reference | None = None
    details: Reference | None = None
    fuse: Reference | None = None
    profiles: bool = False


@dataclass(frozen=True)
class EngineDescriptor:
    """An inference engine, or a setting of one that can be requested by name (``variant_of``, which ``settings`` make).

    ``modules`` are imported, the first is the engine's own; ``distributions`` bring that one (of several, only one should be installed);
    ``extra`` is ours that installs them, ``purpose`` what for, ``note`` what else to know of it.

    ``runner`` makes a GraphRunner of an artefact: a bundle, an ONNX file (``runs`` has "bundle"), an engine folder ("engine"). ``options``
    are its keywords besides ``nonfinite``, ``kept`` those whose values stand in the runner's details, ``falls_back`` says that it takes
    ``otherwise``, which makes the runner for a graph that it refuses, ``parts`` that its runner is a ``PartsRunner``,
    so it runs parts of a network. ``targets`` are those of the bundles that it runs as integers. ``prefers`` says of a bundle that this
    engine, where it is installed, is faster than the reference.

    ``products`` and ``weight_formats`` are the number formats that it takes, and those that it documents for weights alone; of these
    ``weights_seen`` have been planned by its builder, or run where it runs on CPUs. ``gpu``: it runs on NVIDIA GPUs, and not on CPUs.
    ``probe`` is a program that leaves a dictionary ``found`` with what doctor wants to know; by default it imports the modules.
    """

    name: str
    title: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    runner: Reference
    runs: tuple[Literal["bundle", "engine"], ...]
    options: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    falls_back: bool = False
    parts: bool = False
    variant_of: str | None = None
    targets: tuple[str, ...] = ()
    prefers: Callable[[Artifact[BundleDetails]], bool] | None = None
    products: tuple[Products, ...] = ()
    weight_formats: tuple[str, ...] = ()
    weights_seen: tuple[str, ...] = ()
    gpu: bool = False
    extra: str | None = None
    purpose: str = ""
    note: str = ""
    probe: str | None = None
    builder: Builder | None = None
    triton: Triton | None = None

    @property
    def base(self) -> str:
        """The engine itself, of a setting of it."""
        return self.variant_of or self.name

    @property
    def install(self) -> str:
        """The command that installs it."""
        return install_command(self.extra) if self.extra else f"pip install {self.distributions[0]}"

    @property
    def building(self) -> Builder:
        """The builder, of an engine that has one (registry.builders)."""
        assert self.builder is not None
        return self.builder

    def missing(self) -> list[str]:
        """The modules that it needs and that are not installed."""
        return [module for module in self.modules if not _installed(module)]

    def check(self) -> None:
        """Raise EnvironmentProblem, with the command that installs them, where modules are missing."""
        if missing := self.missing():
            raise EnvironmentProblem(
                f"engine {self.name} needs the Python module(s) {', '.join(missing)}, which are not installed",
                f"install it with: python -m {self.install}{self.note}",
            )

    def load(self) -> Any:
        """Its module. Raises EnvironmentProblem where one that it needs is not installed, or its own does not load."""
        self.check()
        try:
            return import_module(self.modules[0])
        except ImportError as error:
            raise EnvironmentProblem(f"{self.modules[0]} is installed and does not load: {error}", "see: dq-deploy doctor") from error

    def make_runner(self, source: Artifact | Path, **options: Any) -> GraphRunner:
        """Its runner of an artefact or file; raises as that does."""
        runner: GraphRunner = resolve_name(self.runner)(source, **options)
        return runner

    def takes(self, format: str, op: Op, device: str | None) -> bool:  # noqa: A002  it is one
        """Whether a product may be planned in a format for a device (a GPU's compute capability, None for a CPU)."""
        return format in FLOATS or any(p.format == format and op in p.ops and p.on(device, None) for p in self.products)

    def documents(self, format: str, op: Op, device: str | None, instructions: Sequence[str] | None = None) -> bool:  # noqa: A002
        """Whether its vendor documents that such a product is computed in that format there."""
        found = (p for p in self.products if p.documented and p.format == format and op in p.ops)
        return format in FLOATS or any(p.on(device, instructions) for p in found)

    def evidence(self, format: str, op: Op, device: str | None) -> Evidence | None:  # noqa: A002
        """What is known of such a product there; None where it is not taken."""
        found = [p for p in self.products if p.format == format and op in p.ops and p.on(device, None)]
        planned = [p.planned for p in found if p.planned is not None]
        if not found:
            return None
        return Evidence(
            documented=any(p.documented for p in found),
            planned=device is not None and any(capability_of(device) >= lowest for lowest in planned),
            executed=any(p.executed for p in found),
        )

    def weight_evidence(self, format: str) -> Evidence | None:  # noqa: A002
        """What is known of weights alone in a format, their products being floats; None where they are not documented."""
        seen = format in self.weights_seen
        return (
            Evidence(documented=True, planned=seen and self.gpu, executed=seen and not self.gpu) if format in self.weight_formats else None
        )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # of the package that it would be in
        return False


def capability_of(text: str) -> tuple[int, int]:
    """A compute capability as (major, minor): "8.9" is (8, 9)."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)
