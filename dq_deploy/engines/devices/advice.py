"""What to take for a device: preset, target and engine, by what vendors document and what builders were seen to plan."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...artifacts.reading import read_json
from ...artifacts.records import Record
from ...errors import UsageError, did_you_mean
from ..descriptors.descriptor import EngineDescriptor, Evidence, Op
from ..descriptors.registry import builders, engine_named, runtimes
from .gpu_names import GPUS, gpu_named

CPU = "cpu"
_FORMATS: dict[str, str] = {"w8a8": "int8", "fp8": "fp8", "w4a16": "int4"}
"""Presets in the order of preference, and the format of their products; "int4" is of weights alone. Narrower integers run as INT8.

NVFP4 is none of them: an activation has 20 dB in its blocks, and 31 in FP8 (docs/nvfp4.md). It is named beside what is chosen.

INT8 with a scale for each timestep measured nearer to the float model than FP8 did (docs/fp8.md), in a plan of about as many kernels.
"""
_WEIGHTS_ALONE = ("int4",)
_OPS: tuple[Op, ...] = ("gemm", "conv")
_OP_NAMES = {"gemm": "matrix products", "conv": "convolutions"}


@dataclass(frozen=True)
class Device:
    """``capability`` is like "8.9", None for a CPU; ``name`` is how it was asked for."""

    name: str
    capability: str | None


class FormatSupport(Record):
    """What is known of a number format in an engine on a device. ``weights_alone``: it is of weights, and products are floats."""

    engine: str
    format: str
    op: Op
    weights_alone: bool
    documented: bool
    planned: bool
    executed: bool

    @property
    def known(self) -> str:
        """In words."""
        return str(Evidence(self.documented, self.planned, self.executed))

    @property
    def what(self) -> str:
        """The format and what it is of, in words."""
        return f"{self.format.upper()} weights, products in float" if self.weights_alone else f"{self.format.upper()} {_OP_NAMES[self.op]}"


class Advice(Record):
    """``preset``, ``target`` and ``backend`` for a device, ``why``, and the ``commands`` to type. ``compute_capability`` is None for a CPU.

    ``support`` is all that is known there, of every engine.
    """

    device: str
    compute_capability: str | None
    preset: str
    target: str
    backend: str
    why: str
    notes: list[str]
    commands: list[str]
    support: list[FormatSupport]


def device_named(text: str) -> Device:
    """The device that a text names: "cpu", a GPU ("RTX 4090"), or a compute capability ("8.9", "sm_89").

    Raises UsageError for anything else, with the nearest names.
    """
    if text.strip().lower() == CPU:
        return Device(CPU, None)
    if (found := gpu_named(text)) is not None:
        return Device(*found)
    capability = _capability(text)
    if capability in GPUS:
        return Device(f"compute capability {capability}", capability)
    known = ", ".join(GPUS)
    if capability is not None:
        raise UsageError(f"nothing is known of compute capability {capability}", f"known: {known}, and cpu")
    names = [name for gpus in GPUS.values() for name in gpus]
    raise UsageError(
        f"unknown device '{text}'", f"{did_you_mean([text], names)}give a GPU such as 'RTX 4090', a compute capability ({known}), or cpu"
    )


def this_machine() -> Device:
    """The first GPU that the CUDA driver knows, if nothing is wrong with it and it is known here; else the CPU."""
    from .cuda_driver import gpu_compute_capability

    try:
        capability = "{}.{}".format(*gpu_compute_capability())
    except (OSError, RuntimeError):
        return Device(CPU, None)
    return device_named(capability)


def _capability(text: str) -> str | None:
    found = re.fullmatch(r"(?:sm_?|compute_)?(\d{1,2})\.?(\d)[af]?", text.strip().lower())
    return f"{found[1]}.{found[2]}" if found else None


def products_of(source: str) -> tuple[Op, ...]:
    """The products that a source is made of: a pipeline's folder with a transformer has no convolution worth a format, the others may.

    Nothing but its index is read. Raises ArtifactError for an index that is not JSON.
    """
    index = Path(source) / "model_index.json"
    parts = read_json(index, "a pipeline's index") if index.is_file() else None
    return ("gemm",) if isinstance(parts, dict) and isinstance(parts.get("transformer"), list) else _OPS


def advise(device: Device, *, source: str = "SOURCE", ops: Sequence[Op] = _OPS, backend: str | None = None) -> Advice:
    """What to take for a device and a network whose products are ``ops``. ``backend``: for that engine.

    The first of w8a8, fp8 and w4a16 whose format an engine documents for all of the products; else for its matrix products; else what its
    builder was seen to plan. Raises UsageError for an engine that is not for that device.
    """
    engines = _engines(device, backend)
    preset, engine = _best(device, engines, ops)
    target = engine.building.target if engine.builder else next(iter(engine.targets))
    return Advice(
        device=device.name, compute_capability=device.capability, preset=preset, target=target, backend=engine.name,
        why=_why(preset, engine, device, ops), notes=[*_notes(engine, device, ops), *_of_text(source)],
        commands=_commands(source, preset, target, engine, device), support=list(support(device)),
    )  # fmt: skip


def support(device: Device) -> Iterator[FormatSupport]:
    """All that is known of number formats on a device: one entry for each engine that runs there, format and operation."""
    for engine in _all(device):
        for format_ in dict.fromkeys(products.format for products in engine.products):
            for op in _OPS:
                if (known := engine.evidence(format_, op, device.capability)) is not None:
                    yield _row(engine, format_, op, known, weights_alone=False)
        for format_ in engine.weight_formats:
            known = engine.weight_evidence(format_)
            assert known is not None
            yield _row(engine, format_, "gemm", known, weights_alone=True)


def _row(engine: EngineDescriptor, format_: str, op: Op, known: Evidence, *, weights_alone: bool) -> FormatSupport:
    return FormatSupport(
        engine=engine.name, format=format_, op=op, weights_alone=weights_alone, documented=known.documented, planned=known.planned,
        executed=known.executed,
    )  # fmt: skip


def _all(device: Device) -> list[EngineDescriptor]:
    """Engines that run on a device, those that are built for it first."""
    if device.capability is None:
        return [engine for engine in {**builders(), **runtimes()}.values() if not engine.gpu]
    return [engine for engine in builders().values() if engine.gpu and _builds_for(engine, device.capability)]


def _builds_for(engine: EngineDescriptor, capability: str) -> bool:
    return not engine.building.compute_capabilities or capability in engine.building.compute_capabilities


def _engines(device: Device, backend: str | None) -> list[EngineDescriptor]:
    found = _all(device)
    if backend is None:
        return found
    engine = engine_named(backend, {**builders(), **runtimes()}, "engine backend")
    if engine in found:
        return [engine]
    names = ", ".join(other.name for other in found)
    if device.capability is None:
        raise UsageError(f"{engine.title} does not run on a CPU", f"name the GPU (--gpu, --compute-capability), or take {names}")
    if not engine.gpu:
        raise UsageError(f"{engine.title} does not run on a GPU here", f"take {names}, or leave the GPU out")
    reason = engine.building.elsewhere.get(device.capability)
    raise UsageError(
        f"{engine.title} cannot build for compute capability {device.capability}", "; ".join(filter(None, [reason, f"take {names}"]))
    )


def _best(device: Device, engines: Sequence[EngineDescriptor], ops: Sequence[Op]) -> tuple[str, EngineDescriptor]:
    """Preset and engine: each grade of evidence over all presets before the next one."""
    presets = list(_FORMATS)
    for grade in (_documented, _documented_products, _seen):
        for preset in presets:
            for engine in engines:
                if grade(engine, _FORMATS[preset], device, ops):
                    return preset, engine
    return presets[-1], engines[0]


def _documented(engine: EngineDescriptor, format_: str, device: Device, ops: Sequence[Op]) -> bool:
    if format_ in _WEIGHTS_ALONE:
        return False
    return all((known := engine.evidence(format_, op, device.capability)) is not None and known.documented for op in ops)


def _documented_products(engine: EngineDescriptor, format_: str, device: Device, ops: Sequence[Op]) -> bool:
    if format_ in _WEIGHTS_ALONE:
        return engine.weight_evidence(format_) is not None
    return "gemm" in ops and _documented(engine, format_, device, ("gemm",))


def _seen(engine: EngineDescriptor, format_: str, device: Device, ops: Sequence[Op]) -> bool:
    return all((known := engine.evidence(format_, op, device.capability)) is not None and (known.planned or known.executed) for op in ops)


def _why(preset: str, engine: EngineDescriptor, device: Device, ops: Sequence[Op]) -> str:
    format_ = _FORMATS[preset]
    if format_ in _WEIGHTS_ALONE:
        return (
            f"{engine.title} documents {format_.upper()} weights there, with products in float; it documents none of quantized activations"
        )
    found = [(op, known) for op in ops if (known := engine.evidence(format_, op, device.capability))]
    documented = [_OP_NAMES[op] for op, known in found if known.documented]
    said = [f"{engine.title} documents {' and '.join(documented)} in {format_.upper()}"] if documented else []
    seen = [f"{_OP_NAMES[op]} {known}" for op, known in found if not known.documented]
    return "; ".join([*said, *([f"{format_.upper()} {' and '.join(seen)}, not documented, in {engine.title}"] if seen else [])])


def _notes(engine: EngineDescriptor, device: Device, ops: Sequence[Op]) -> Iterator[str]:
    """What else to know before one starts."""
    for other in _all(device):
        if other is not engine and device.capability is not None:
            ahead = ", built on any x86-64 machine" if other.building.compute_capabilities else ""
            yield f"or {other.title}{ahead}: advise --backend {other.name} has its commands, with --preset {_best(device, [other], ops)[0]}"
    if device.capability is None:
        yield "INT8 is fast on CPUs with VNNI or its like; dq-deploy doctor says whether this one has it"
        return
    yield "no GPU's speed is known: time the engine there with bench, beside that of export --float --dtype fp16; prove does it all"
    undocumented = [
        f"{format_.upper()} {_OP_NAMES[op]}"
        for format_ in ("int8", "fp8") for op in ops
        if (known := engine.evidence(format_, op, device.capability)) is not None and not known.documented
    ]  # fmt: skip
    if undocumented:
        yield f"{engine.title} takes {', '.join(undocumented)} of quantized activations there, and does not document them"
    if "gemm" in ops and _documented(engine, "fp4", device, ("gemm",)):
        errors = "larger errors, fewer with --low-rank 16"
        yield f"{engine.title} documents FP4 matrix products there: --preset nvfp4 has 4.5 bits a weight, and {errors}"
    if not engine.building.compute_capabilities:
        yield f"{engine.title} is built on the machine with the GPU"


def _of_text(source: str) -> Iterator[str]:
    """What the commands leave out where it is not known whether the source is a text pipeline."""
    if not Path(source).is_dir():
        yield "a text pipeline takes --prompts FILE too, for quantize and sample; --guidance-scale is what you sample with"


def _commands(source: str, preset: str, target: str, engine: EngineDescriptor, device: Device) -> list[str]:
    name = shlex.quote(source) if source != "SOURCE" else source
    prompts = " --prompts FILE" if any(Path(source).glob("tokenizer*")) else ""
    lines = [
        f"dq-deploy quantize {name} -o checkpoint --preset {preset}{prompts}",
        f"dq-deploy export checkpoint -o bundle --target {target}",
        "dq-deploy check bundle --checkpoint checkpoint",
    ]
    if engine.builder is not None:
        capability = f" --compute-capability {device.capability}" if engine.building.compute_capabilities and device.capability else ""
        lines.append(f"dq-deploy build-engine bundle -o engine --backend {engine.name}{capability}")
    return lines
