"""Running the rules over a bundle or an ONNX file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as passes

from ...artifacts import Artifact, open_artifact
from ...artifacts.details import BundleDetails
from ...artifacts.reading import read_onnx
from ...errors import ArtifactError, UsageError
from ...formats.tables import RELATIVE_SCALE, SCALE
from ...formats.target import TARGETS, target_name
from .finding import Finding, LintResult
from .rule import Hit, Rule
from .rules import RULES
from .view import View


def lint(source: str | Path | Artifact[BundleDetails], *, target: str | None = None) -> LintResult:
    """Name everything in a graph that would crash an engine's builder, be refused, lose INT8, or be slow; all at once, building nothing.

    ``source`` is a bundle (folder or opened artefact) or an ONNX file. ``target`` ("qdq", "onnxruntime") says whose rules apply: by
    default the bundle's own, and "qdq" for an ONNX file. Large weights are not read. Needs neither torch nor an engine.

    Raises UsageError (unknown target, no such path) and ArtifactError (no bundle, or no ONNX graph). Findings are a result, not an error.
    """
    target = target and target_name(target)
    if target is not None and target not in TARGETS:
        raise UsageError(f"unknown target '{target}'", f"targets: {', '.join(TARGETS)}")
    if not isinstance(source, Artifact) and Path(source).is_file():
        return _judge(View(_load(Path(source)), Path(source), frozenset()), target or "qdq", str(source))
    bundle = source if isinstance(source, Artifact) else open_artifact(source, "bundle")
    details = bundle.details
    layers = frozenset([*(layer.name for layer in details.layers), *(site.name for site in details.quantizers)])
    file = bundle.file("model.onnx")
    tables = frozenset(f"{name}.{part}" for layer in details.layers for name in layer.quantizers for part in (SCALE, RELATIVE_SCALE))
    view = View(_load(file), file, layers, tuple(bundle.manifest.timesteps), tables, frozenset(bundle.manifest.files))
    return _judge(view, target or details.target, str(bundle.path))


def _judge(view: View, target: str, source: str) -> LintResult:
    found = [_finding(rule, hit, view) for rule, hit in _hits(view, target)]
    return LintResult(source=source, target=target, findings=tuple(sorted(found, key=lambda f: f.severity != "error")))


def _load(file: Path) -> ir.Model:
    # Not ir.load: the data files that the graph names are opened only where a rule finds them harmless.
    proto = read_onnx(file)
    try:
        model = ir.from_proto(proto)
    except (ValueError, TypeError, KeyError, ir.serde.SerdeError) as error:
        raise ArtifactError(f"{file} is not an ONNX graph: {error.__cause__ or error}") from None
    ir.external_data.set_base_dir(model.graph, file.parent)
    if model.functions:
        passes.InlinePass()(model)
    return model


def _hits(view: View, target: str) -> Iterator[tuple[Rule, Hit]]:
    for rule in RULES:
        if target in rule.targets:
            yield from ((rule, hit) for hit in rule.find(view))


def _finding(rule: Rule, hit: Hit, view: View) -> Finding:
    node = hit.node
    return Finding(
        rule=rule.id,
        severity=rule.severity,
        node=str(node.name or node.outputs[0].name) if node else hit.name,
        op=node.op_type if node else "",
        module=view.module(node),
        message=hit.message,
        values=hit.values,
        hint=rule.hint,
    )
