"""What was recorded: a file of behaviours with the versions that showed them, and the page that is written from it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dq_deploy.engines.devices.machine import machine_info
from dq_deploy.exporters.lint import RULES

from .catalogue import GROUPS, Pattern
from .engines import COMPUTE_CAPABILITY, ENGINES, Behaviour

RESULTS = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parent / "RESULTS.md"
_PACKAGES = {"TensorRT-RTX": "tensorrt-rtx", "OpenVINO": "openvino", "ONNX Runtime": "onnxruntime"}
_WORDS = {
    "int8": "INT8",
    "fp8": "FP8",
    "fp4": "FP4",
    "int4": "INT4 in memory, float product",
    "float": "**float**",
    "refused": "**refused**",
    "crash": "**crash**",
}
_INTRODUCTION = """\
# What the engines make of each pattern

`python -m benchmarks.patterns` writes this page: it builds every graph of `benchmarks/patterns/` with TensorRT-RTX (ahead of time for
compute capability {capability}, of FP4 for 12.0, in a child process, no GPU), compiles it with OpenVINO and opens it in ONNX Runtime, both
on a CPU, and writes down what they did. The tests do the same and compare. Recorded with {versions},
on a CPU with {instructions}.

- TensorRT-RTX: what its compiler *chose*. Nothing was executed: INT8 in a plan is no proof of what a GPU runs, nor of its numbers.
- OpenVINO: the precision of the compiled model's products. ONNX Runtime: the operators that are left when it has optimized the graph, with
  the session options of `dq_deploy.engines.onnxruntime.runner`.
- Lint: the rules of `dq-deploy check --lint` that fire for the target in brackets (qdq where there is none): errors, and
  *warnings* in italics.
"""


class Recorded(BaseModel):
    """``behaviours``: pattern → engine → what it did. ``instructions`` of the CPU that OpenVINO and ONNX Runtime chose kernels for."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    versions: dict[str, str]
    instructions: tuple[str, ...]
    behaviours: dict[str, dict[str, Behaviour]]


def installed() -> dict[str, str]:
    """Version of each engine. Raises PackageNotFoundError for one that is not installed."""
    return {engine: version(_PACKAGES[engine]) for engine in ENGINES}


def instructions() -> tuple[str, ...]:
    """Instruction sets of this CPU that matter to INT8."""
    return tuple(machine_info()["instructions"])


def load() -> Recorded:
    """What is recorded in ``results.json``."""
    return Recorded.model_validate_json(RESULTS.read_bytes())


def page(recorded: Recorded) -> str:
    """The page, in Markdown."""
    versions = ", ".join(f"{engine} {number}" for engine, number in recorded.versions.items())
    lines = [
        _INTRODUCTION.format(
            capability=".".join(map(str, COMPUTE_CAPABILITY)), versions=versions, instructions=", ".join(recorded.instructions)
        )
    ]
    for title, patterns in GROUPS.items():
        lines += [f"## {title}", "", f"| pattern | {' | '.join(ENGINES)} | lint |", f"|---|{'---|' * len(ENGINES)}---|"]
        lines += [_row(pattern, recorded.behaviours[pattern.name]) for pattern in patterns]
        lines.append("")
    return "\n".join(lines)


def _row(pattern: Pattern, behaviours: dict[str, Behaviour]) -> str:
    cells = [_cell(behaviours[engine]) for engine in ENGINES]
    return f"| `{pattern.name}`: {pattern.title} | {' | '.join(cells)} | {_lint(pattern)} |"


def _cell(behaviour: Behaviour) -> str:
    detail = behaviour.detail.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")
    return f"{_WORDS[behaviour.outcome]}: {detail}"


def _lint(pattern: Pattern) -> str:
    severities = {rule.id: rule.severity for rule in RULES}
    names = [f"`{name}`" if severities[name] == "error" else f"*`{name}`*" for name in pattern.lint]
    target = "" if pattern.target == "qdq" else f" ({pattern.target})"
    return (", ".join(names) or "–") + target
