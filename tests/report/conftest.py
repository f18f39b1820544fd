"""One page about the small pipeline's artefacts, and data in which everything that can be named is named like an attack."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dq_deploy.artifacts.details import BlockLoss, FloatLayer
from dq_deploy.artifacts.final_error import FinalError, StepCost
from dq_deploy.engines.bench import BenchResult, BenchRow
from dq_deploy.report.data import (
    ArtifactRow,
    CheckRow,
    DilationRow,
    EngineRow,
    Fact,
    Headline,
    Layer,
    Pictures,
    ReportData,
    ScaleTable,
    SnrSeries,
)
from dq_deploy.report.make import Drawing, ReportRequest, Timing, write_report
from tests.flow import Flow

ATTACK = "</script><img src=x onerror=\"window.attacked=1\"><b title='a'>&amp;"
T = [0.0, 50.0, 100.0]


@dataclass(frozen=True)
class Written:
    path: Path
    data: ReportData
    notes: list[str]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, flow: Flow) -> Written:
    """The page about all of the flow's artefacts: three pairs of pictures, every layer, two checks, a timing."""
    path, notes = tmp_path_factory.mktemp("report") / "report.html", []
    wanted = ReportRequest(drawing=Drawing(n=3, seed=5), timing=Timing(batches=(1, 2), runs=3))
    bundles = [flow.bundles[name] for name in ("qdq", "onnxruntime", "float")]
    data = write_report([flow.checkpoint, *bundles], path, wanted=wanted, note=notes.append)
    return Written(path, data, notes)


@pytest.fixture(scope="session")
def attacked() -> ReportData:
    """Every section, every text of it an attempt to become markup."""
    return report_data(ATTACK)


def report_data(name: str) -> ReportData:
    """Every section of the page, with ``name`` in every text that comes from outside."""
    table = ScaleTable(timesteps=T, scales=[0.1, 0.2, 0.4], zero_points=[3, -5, 7])
    still = ScaleTable(timesteps=T, scales=[0.1, 0.1, 0.1], zero_points=[0, 0, 0])
    picture = _png()
    return ReportData(
        title=f"Title {name}",
        subtitle=f"subtitle {name}",
        headlines=[Headline(value="41.3 dB", label=f"label {name}"), Headline(value="1 of 2", label="parity", passed=False)],
        summary=[
            Fact(label=f"SNR {name}", value="41.3 dB", passed=True),
            Fact(label="PSNR", value="29 dB", passed=False),
            Fact(label="Time", value="6 min"),
        ],
        pictures=Pictures(
            engine=name, artefact=name, seed=0, steps=3, quantized=[picture] * 2, expected=[picture] * 2, psnr_db=[40.0, 30.0]
        ),
        timesteps=T,
        layers=[
            Layer(
                name=f"first {name}", op="conv2d", macs=75, weight_bits=8, activation_bits=8, quantizers=[f"q1 {name}"],
                output_db=[10.0, 30.0, None], precisions={f"engine {name}": "int8"},
            ),
            Layer(
                name=f"second {name}", op="matmul", macs=15, weight_bits=None, activation_bits=8, quantizers=[f"q1 {name}", f"q2 {name}"],
                output_db=[20.0, 5.0, 40.0], precisions={f"engine {name}": "fp16"}, reasons={f"engine {name}": f"reason {name}"},
            ),
        ],
        float_layers=[FloatLayer(name=f"third {name}", op="conv2d", macs=10, reason=f"kept {name}")],
        error_samples=4,
        activation_db={f"q1 {name}": [44.0, 45.0, 46.0], f"q2 {name}": [33.0, None, 50.0]},
        clipped={f"q1 {name}": [0.0, 0.0123, 0.0]},
        clipped_known=True,
        final_error=FinalError(
            all_db=24.5, seeds=2,
            steps=[
                StepCost(timesteps=[0.0], only_db=51.23, without_db=24.6, share=0.002),
                StepCost(timesteps=[50.0, 100.0], only_db=26.54, without_db=None, share=0.998),
            ],
        ),
        tables={f"q1 {name}": table, f"q2 {name}": still},
        snr=[
            SnrSeries(name=f"before {name}", timesteps=T, snr_db=[11.0, 30.0, 38.0], role="before"),
            SnrSeries(name="PyTorch", timesteps=T, snr_db=[20.0, 35.0, 42.0], role="reference"),
            SnrSeries(name=f"bundle {name}", timesteps=T, snr_db=[20.1, None, 41.9]),
        ],
        checks=[
            CheckRow(
                bundle=name, target=name, dtype="fp32", passed=False, layers=2, timesteps=3, allowed_db=0.5, largest_difference_db=0.1234,
                worst_layer=name, failures=[f"failure {name}", "b", "c", "d"],
            )
        ],
        distillation=[
            BlockLoss(block=f"a {name}", before=1e-3, after=1e-4, iterations=100),
            BlockLoss(block="b", before=1e-3, after=2e-3, iterations=100),
        ],
        dilation=[
            _dilation(f"q1 {name}", "symmetric", 0.5, [f"norm {name}"]),
            _dilation(f"q2 {name}", "none", 0.0, []),
        ],
        dilation_rules={name: 30.0, "none": 31.5},
        latency=latency(name),
        engines=[
            EngineRow(
                name=name, statement=f"chosen {name}", kernels=141, planned_int8=61, as_planned=61, planned_layers=62,
                planned_formats={"int8": 60, "fp8": 2}, gemm_by_precision={},
                conv_by_precision={"fp16": 1, "int8": 33}, weights_bytes=2_900_000, file_bytes=3_100_000,
                float_weights={"fp16": 5_900_000, "fp32": 10_000_000},
            )
        ],
        artifacts=[
            ArtifactRow(name=name, kind="bundle", what=name, is_float=False, bytes=1_000_000, manifest_sha256="ab12", tools={name: name})
        ],
        options={name: {"pattern": name}},
        notes=[f"note {name}"],
        commands=[f"dq-deploy quantize {name}"],
        versions={name: "1.2.3"},
    )  # fmt: skip


def latency(name: str) -> BenchResult:
    rows = [
        _row(one, batch, *ratio) for batch in (1, 8) for one, *ratio in [("float", 1.0, 1.0, 1.0, None), (f"fast {name}", 0.5, 0.45, 0.55)]
    ]
    machine = {"cpu": f"CPU {name}", "cores": 2, "instructions": ["avx2"]}
    rows += [_row("same", 1, 1.02, 0.98, 1.05), _row("same", 8, 1.5, 1.4, 1.6)]
    return BenchResult("float", rows, {row.contender: {"path": row.contender} for row in rows}, {"runs": 50}, machine, [f"a note {name}"])


def _row(contender: str, batch: int, ratio: float, low: float, high: float, snr: float | None = 41.25) -> BenchRow:
    return BenchRow(contender, "engine", batch, 10 * ratio, 12 * ratio, 0.5, 10 * ratio / batch, ratio, low, high, low <= 1 <= high, snr)


def _dilation(quantizer: str, rule: str, share: float, folded: list[str]) -> DilationRow:
    return DilationRow(
        quantizer=quantizer, rule=rule, unsaturated_share=0.5, dilated_share=share, range_ratio=1 - share / 10, error_ratio=0.9,
        largest_s=1.0, folded_into=folded,
    )  # fmt: skip


def _png() -> str:
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
