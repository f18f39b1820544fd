"""What the golden checkpoints export to, as hashes of the graphs: ``python -m tests.golden.exports``, where another graph is meant.

Two for each target and type, of a form in which neither the order of nodes nor the writer of the file matters: of the whole graph, which is
torch's exporter's too, and of the nodes of quantizers and layers alone, which are this project's on every version of torch.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dq_deploy.artifacts import Artifact
from dq_deploy.exporters import TARGETS, export

FILE = "exports.json"
TYPES = ("fp32", "fp16", "bf16")
CASES = [" ".join(case) for case in product(TARGETS, TYPES)]
_TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir")


def tools() -> dict[str, str]:
    """Versions of what has a hand in the whole graph; a local part ("+cpu") makes no difference."""
    return {name: version(name).partition("+")[0] for name in _TOOLS}


def exported(checkpoint: Path, case: str, folder: Path) -> dict[str, str]:
    """The hashes of one export, ``case`` being target and type."""
    target, dtype = case.split()
    return hashes(export(checkpoint, folder, target=target, dtype=dtype))  # type: ignore[arg-type]


def hashes(bundle: Artifact) -> dict[str, str]:
    """Of the whole graph, and of what it has of quantizers and layers."""
    details, graph = bundle.manifest.details, ir.load(bundle.path / "model.onnx").graph
    names = {entry["name"] for key in ("quantizers", "layers") for entry in details[key]}
    ours = [node for node in graph if _owner(str(node.name)) in names]
    ends = [f"{v.name} {v.dtype} {v.shape}" for v in (*graph.inputs, *graph.outputs)]
    return {"graph": _hash([*ends, *_lines(graph)]), "lowered": _hash(_lines(ours, alone=True))}


def _owner(node: str) -> str:
    """The quantizer or layer that a node is named after."""
    name = node.partition("/")[0].partition("#pad")[0].removesuffix("_correction")
    return name.removesuffix(".scale").removesuffix(".zero_point")


def _lines(nodes: Iterable[ir.Node], *, alone: bool = False) -> list[str]:
    """The nodes and the constants that they read; ``alone``: what other nodes have made is not told apart."""
    nodes = list(nodes)
    known = {value for node in nodes for value in node.outputs} if alone else None
    lines = []
    for node in nodes:
        read = [_read(value, known) for value in node.inputs]
        options = sorted(f"{a.name}={a.value}" for a in node.attributes.values())
        given = [f"{value.name} {value.dtype}" for value in node.outputs if not (alone and value.is_graph_output())]
        lines.append(f"{node.name}: {node.domain}.{node.op_type} {read} {options} {given}")
    return lines


def _read(value: ir.Value | None, known: set[ir.Value] | None) -> str:
    if value is None:
        return ""
    if (tensor := value.const_value) is not None:
        return f"{value.name} {tensor.dtype} {tensor.shape} {hashlib.sha256(tensor.tobytes()).hexdigest()}"
    return str(value.name) if known is None or value in known else "·"


def _hash(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


if __name__ == "__main__":
    for folder in sorted(Path(__file__).parent.glob("schema-*")):
        with tempfile.TemporaryDirectory() as made:
            found: dict[str, Any] = {case: exported(folder / "checkpoint", case, Path(made) / case.replace(" ", "-")) for case in CASES}
        (folder / FILE).write_text(json.dumps({"tools": tools(), **found}, indent=1) + "\n")
        sys.stderr.write(f"{folder / FILE}\n")
