"""The committed figures of a cell: one small JSON file each, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dq_deploy.artifacts.final_error import FinalError
from dq_deploy.errors import ArtifactError, UsageError

from .settings import Cell, DrawnBy, Family, Settings, Tier

SCHEMA_VERSION = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cost(_Strict):
    """What quantizing took. ``loaded_mib`` is the process before it began, with the model and the libraries; ``peak_mib`` its peak."""

    wall_s: float
    cpu_s: float
    loaded_mib: float
    peak_mib: float
    gpu_peak_mib: float | None = None
    calibration_samples: int
    calibration_inputs: int
    iterations: int
    blocks: int = 0
    stopped_blocks: list[str] = []
    dilated_tensors: int | None = None


class GridFigures(_Strict):
    """``psnr_db`` and ``feature_distance`` [n]: one number a picture. ``error`` [T, n]: summed squares of the difference to the float
    output on the float model's own trajectories; ``power`` [T, n] those of the float output (in the float model's file only).
    ``final_error`` and ``final_power`` [n]: the same of where each noise ends.
    ``cost_of_steps``: what each step's error costs the final sample. ``recognised`` [n]: 1 where the classifier sees what the prompt asks
    for, of text pipelines.
    """  # noqa: D205  one definition

    samples: int
    wall_s: float
    psnr_db: list[float] | None = None
    extractor: str | None = None
    feature_distance: list[float] | None = None
    timesteps: list[float]
    error: list[list[float]] | None = None
    power: list[list[float]] | None = None
    final_error: list[float] | None = None
    final_power: list[float] | None = None
    cost_of_steps: FinalError | None = None
    recognised: list[int] | None = None


class RivalFigures(_Strict):
    """Fréchet distance to real pictures with the small classifier's features."""

    drawn_by: DrawnBy = "torch"
    samples: int
    wall_s: float
    extractor: str
    reference: str
    frechet: float
    replicates: list[float]


class HeadlineFigures(_Strict):
    """Inception FID and KID against real pictures; ``kid`` [subsets] are unbiased estimates on ``kid_size`` pictures each."""

    drawn_by: DrawnBy = "torch"
    samples: int
    wall_s: float
    extractor: str
    reference: str
    fid: float
    fid_replicates: list[float]
    kid: list[float]
    kid_size: int


class CellResult(_Strict):
    """Everything known about a cell. ``code_sha256`` is of the code that quantized (see ``code_hash``)."""

    schema_version: int = SCHEMA_VERSION
    cell: Cell
    family: Family = "unet"
    measured: str
    model_sha256: str
    code_sha256: str
    config: dict[str, Any]
    settings: Settings
    environment: dict[str, Any]
    cost: Cost | None = None
    grid: GridFigures | None = None
    rival: RivalFigures | None = None
    headline: HeadlineFigures | None = None

    def figures(self, tier: Tier) -> GridFigures | RivalFigures | HeadlineFigures | None:
        """A tier's figures, if it was measured."""
        found: dict[Tier, GridFigures | RivalFigures | HeadlineFigures | None]
        found = {"grid": self.grid, "rival": self.rival, "headline": self.headline}
        return found[tier]


def read_result(path: Path) -> CellResult | None:
    """A cell's figures, None where there are none. Raises ArtifactError for a file that is none of ours."""
    if not path.is_file():
        return None
    try:
        return CellResult.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:3])
        raise ArtifactError(f"{path} holds no figures of this harness: {problems}", "delete it, and the cell is measured again") from None


def write_result(path: Path, result: CellResult) -> None:
    """Write a cell's figures; the file appears whole."""
    values = result.model_dump(mode="json", exclude_none=True)
    # A line for each part: a diff shows which changed, and hundreds of numbers do not take hundreds of lines.
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'), allow_nan=False)}" for key, value in values.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, or leave what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text if text.endswith("\n") else text + "\n")
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_all(results: Path) -> list[CellResult]:
    """Every cell of a results folder, by path. Raises UsageError where there is no such folder."""
    if not results.is_dir():
        raise UsageError(f"no results in {results}", "run `python -m benchmarks.accuracy` first")
    return [found for path in sorted(results.glob("*/*/*.json")) if (found := read_result(path))]


def rounded(values: Iterable[Any], digits: int) -> list[Any]:
    """Numbers with so many significant digits, nested lists too: the files are committed."""
    return [rounded(v, digits) if isinstance(v, list) else float(f"{float(v):.{digits}g}") for v in values]
