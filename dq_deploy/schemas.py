"""The published JSON Schemas of every JSON artefact and result: ``python -m dq_deploy.schemas docs/schemas`` writes them.

They are made from the very models that read the files, so they cannot say anything else; a test compares them with the published ones.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, create_model

from .artifacts import SCHEMA_VERSION, Manifest
from .artifacts.details import BundleDetails, CheckpointDetails, EngineDetails, PipelineFolderDetails, RepositoryDetails, ScheduleDetails
from .artifacts.scale_tables import ScaleTable
from .artifacts.writing import write_text

# What `check` prints beside the result itself (commands/check.py).
_PRINTED: dict[str, dict[str, Any]] = {
    "check-result": {
        "passed": {"type": "boolean"},
        "worst_layer": {"type": ["string", "null"]},
        "worst_timestep": {"type": ["number", "null"]},
    },
    "lint-result": {"passed": {"type": "boolean"}, "errors": {"type": "integer"}, "warnings": {"type": "integer"}},
}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, dict[str, Any]]:
    """File name → JSON Schema, for the manifest of every kind and for what the commands print and write."""
    from .accuracy.check import CheckResult
    from .accuracy.proof import Proof
    from .engines.bench import BenchResult
    from .engines.devices.advice import Advice
    from .engines.layer_report import LayerReport
    from .exporters.lint import LintResult
    from .quantization import QuantizeConfig
    from .report.data import ReportData
    from .sampling import SampleResult

    models: dict[str, Any] = {
        "manifest-checkpoint": _manifest("checkpoint", CheckpointDetails),
        "manifest-bundle": _manifest("bundle", BundleDetails),
        "manifest-engine": _manifest("engine", EngineDetails),
        "manifest-schedule": _manifest("schedule", ScheduleDetails),
        "manifest-triton-repository": _manifest("triton-repository", RepositoryDetails),
        "manifest-pipeline-folder": _manifest("pipeline-folder", PipelineFolderDetails),
        "layer-report": LayerReport,
        "advice": Advice,
        "check-result": CheckResult,
        "lint-result": LintResult,
        "bench-result": BenchResult,
        "proof": Proof,
        "sample-result": SampleResult,
        "report": ReportData,
        "scale-table": ScaleTable,
        "quantize-config": QuantizeConfig,
    }
    return {f"{name}.schema.json": _schema(name, model) for name, model in models.items()}


def write_schemas(folder: Path) -> list[Path]:
    """Write them all; those that are written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, schema in schemas().items():
        write_text(folder / name, json.dumps(schema, indent=2, sort_keys=True) + "\n")
        written.append(folder / name)
    return written


def _manifest(kind: str, details: Any) -> type[BaseModel]:
    """The manifest of one kind, with the details of its own."""
    fields: dict[str, Any] = {"kind": (Literal[kind], ...), "details": (details, ...)}
    return create_model(f"{kind.title().replace('-', '')}Manifest", __base__=Manifest, **fields)


def _schema(name: str, model: Any) -> dict[str, Any]:
    # In validation mode: what is read. Dataclasses have no schema of their own.
    found = TypeAdapter(model).json_schema(mode="validation")
    found["properties"] |= _PRINTED.get(name, {})
    return {"$schema": _DIALECT, "$id": f"dq-deploy/{SCHEMA_VERSION}/{name}", **found}


if __name__ == "__main__":
    for path in write_schemas(Path(sys.argv[1])):
        sys.stderr.write(f"{path}\n")
