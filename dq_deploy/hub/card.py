"""The model card of an artefact: what its manifest says, and what a report measured of it."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from pydantic import ValidationError

from ..artifacts import Artifact, is_kind
from ..artifacts.details import CheckpointDetails, Details, EngineDetails, ScheduleDetails
from ..artifacts.layer_bits import bits_in_words, bits_label, bits_worth_saying
from ..artifacts.origin import source_name
from ..artifacts.reading import read_json
from ..artifacts.turns import turns
from ..errors import ArtifactError, UsageError
from ..formats.target import target_name
from ..report.data import Pictures, ReportData, SnrSeries
from ..report.recipe import commands
from ..sampling.grid import Panel, grid_png
from .repo_id import REPO_ID, check_repo_id

CARD_NAME, PICTURE_NAME = "README.md", "samples.png"
_NOT_KNOWN = "OWNER/NAME"
_TEXT = "encoder_hidden_states"  # the input of a model that takes a text
_MOST_COLUMNS = 10  # of the table of timesteps: more are thinned out evenly


def read_report(path: Path, artifact: Artifact) -> ReportData:
    """The data that ``dq-deploy report --format json`` printed.

    Raises UsageError (no such file) and ArtifactError (no report, or one that is not about ``artifact``).
    """
    if not path.is_file():
        raise UsageError(f"no such file: {path}", "write it with: dq-deploy report ... --format json > report.json")
    hint = "write it with: dq-deploy report ... --format json"
    content = read_json(path, "the data of a report", hint=hint)
    try:
        data = ReportData.model_validate(content)
    except ValidationError as error:
        raise ArtifactError(f"{path} is not the data of a report: {error.errors()[0]['msg']}", hint) from None
    if artifact.as_parent.manifest_sha256 not in {row.manifest_sha256 for row in data.artifacts}:
        raise ArtifactError(f"{path} is a report about other artefacts than {artifact.path}", "report on this one too, and try again")
    return data


def model_card(artifact: Artifact, report: ReportData | None = None, *, repo_id: str | None = None, license_id: str | None = None) -> str:
    """The card as Markdown with YAML metadata. Without a ``report`` it says what the manifest holds, and nothing of accuracy and speed.

    Raises UsageError for an invalid ``repo_id``.
    """
    if repo_id is not None:
        check_repo_id(repo_id)
    environment = Environment(
        loader=PackageLoader("dq_deploy.hub"), autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True  # noqa: S701  Markdown; what comes from outside goes through `cell`
    )  # fmt: skip
    environment.filters |= {"cell": _cell, "target": target_name}
    environment.filters["number"] = "{:g}".format  # flow matching's timesteps may run from 0 to 1
    manifest = artifact.manifest
    body = environment.get_template("card.md.j2").render(
        bits=bits_in_words(artifact),
        bits_rows=bits_worth_saying(artifact),
        manifest=manifest,
        details=manifest.details,
        members=_members(artifact),
        rounded=_rounded(artifact),
        widths=artifact.details.widths if is_kind(artifact, CheckpointDetails) else [],
        source=source_name(source) if (source := artifact.details.source) else None,
        repo_id=repo_id or _NOT_KNOWN,
        report=report,
        table=_snr_table(report.snr) if report else [],
        commands=report.commands if report else commands(artifact),
        psnr=_psnr(report),
        picture=PICTURE_NAME if report and report.pictures else None,
        mean=mean,
    )
    card = ModelCard(f"---\n{_metadata(artifact, report, license_id).to_yaml()}\n---\n\n{body}")
    return str(card)


def _members(artifact: Artifact) -> list[dict[str, str]]:
    """Of a schedule, what each member is and which timesteps it runs."""
    if not is_kind(artifact, ScheduleDetails):
        return []
    found = zip(turns(artifact), artifact.details.members, strict=True)
    return [
        {"folder": entry.folder, "kind": turn.member.manifest.kind, "bits": bits_in_words(turn.member) or "float", "span": turn.span}
        for turn, entry in found
    ]


def _rounded(artifact: Artifact) -> str | None:
    """Of a checkpoint that says so, how its weights became codes."""
    if not is_kind(artifact, CheckpointDetails) or artifact.details.rounding is None:
        return None
    return artifact.details.rounded_as if artifact.details.rounding else "to the nearest codes"


def sample_grid(pictures: Pictures) -> bytes:
    """The report's pairs as one PNG, float on the left where there is one. Raises ArtifactError where one is not a picture."""
    panels = [Panel(f"quantized · {pictures.engine}", _decoded(pictures.quantized))]
    if pictures.expected:
        panels.insert(0, Panel("float · pytorch", _decoded(pictures.expected)))
    return grid_png(panels)


def _decoded(addresses: Sequence[str]) -> np.ndarray[Any, Any]:
    try:
        images = [Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))).convert("RGB") for one in addresses]
    except (OSError, ValueError) as error:
        raise ArtifactError(f"a picture in the report cannot be read: {error}", "write the report again") from None
    return np.stack([np.asarray(image, np.float64) / 255 for image in images])


def _metadata(artifact: Artifact, report: ReportData | None, license_id: str | None) -> ModelCardData:
    manifest = artifact.manifest
    details = artifact.details
    reference = details.source.reference if details.source else ""
    base, _, _ = reference.partition("@")
    own = bool(details.source and details.source.absolute)
    bits = bits_label(artifact)
    tags = ["dq-deploy", "diffusion", "quantized", "dilatequant", manifest.kind, bits.lower() if bits else "float"]
    tags += [details.backend] if isinstance(details, EngineDetails) else []
    tags += ["onnx"] if manifest.kind == "bundle" else []
    return ModelCardData(
        license=license_id,
        library_name="dq-deploy",
        # A folder's name may look like an id; only what is not a path here is taken for one.
        base_model=base if REPO_ID.fullmatch(base) and not own and not Path(reference).exists() else None,
        pipeline_tag=_task(details),
        tags=tags,
        model_name=manifest.model,
        eval_results=_results(report) if report else None,
    )


def _task(details: Details) -> str:
    """What the hub calls a model like this."""
    if _TEXT not in details.input_names:
        return "unconditional-image-generation"
    begins = "image" if details.pictures and details.pictures.image else "text"
    return f"{begins}-to-{'video' if 'num_frames' in details.picture_size else 'image'}"


def _results(report: ReportData) -> list[EvalResult] | None:
    """Figures of the quantized model against its float model; the data are samples of the model itself."""
    metrics = [
        ("snr_db", "SNR against the float model, median timestep [dB]", _median(report.snr)),
        ("psnr_db", "PSNR of pictures [dB]", _psnr(report)),
    ]
    found = [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type="own-samples",
            dataset_name="the model's own samples",
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 2),
        )
        for kind, name, value in metrics
        if value is not None
    ]
    return found or None


def _median(series: Sequence[SnrSeries]) -> float | None:
    values = [value for one in series if one.role == "reference" for value in one.snr_db if value is not None]
    return median(values) if values else None


def _psnr(report: ReportData | None) -> float | None:
    psnr = report.pictures.psnr_db if report and report.pictures else None
    return mean(psnr) if psnr else None


def _snr_table(series: Sequence[SnrSeries]) -> list[list[str]]:
    """Header and rows: a column for each timestep, or for some of them where there are many."""
    if not series:
        return []
    timesteps = series[0].timesteps
    count = min(_MOST_COLUMNS, len(timesteps))
    shown = sorted({round(i) for i in np.linspace(0, len(timesteps) - 1, count)})
    header = ["SNR [dB] at timestep", *(f"{timesteps[i]:g}" for i in shown)]
    rows = [[one.name, *("–" if (value := one.snr_db[i]) is None else f"{value:.1f}" for i in shown)] for one in series]
    return [header, *rows]


def _cell(value: object) -> str:
    """Text for a table or a line: no markup, no column, no line of its own."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(" ".join(str(value).split()), quote=False))
