"""The page: whole, self-contained, and true to its data."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy.engines.bench import BenchResult, BenchRow
from dq_deploy.errors import ArtifactError, ResourceError, UsageError
from dq_deploy.report.data import BlockLoss, DilationRow, EngineRow, Fact, ReportData, ScaleTable, SnrSeries
from dq_deploy.report.files import write_whole
from dq_deploy.report.grid import Panel, grid_png
from dq_deploy.report.page import render, write_report

T = [0.0, 50.0, 100.0]


def row(contender: str, batch: int, ratio: float, low: float, high: float, snr: float | None = 41.25) -> BenchRow:
    return BenchRow(contender, "engine", batch, 10 * ratio, 12 * ratio, 0.5, 10 * ratio / batch, ratio, low, high, low <= 1 <= high, snr)


def latency() -> BenchResult:
    rows = [row(name, batch, *ratio) for batch in (1, 8) for name, *ratio in [("float", 1.0, 1.0, 1.0, None), ("fast", 0.5, 0.45, 0.55)]]
    machine = {"cpu": "Some CPU", "cores": 2, "instructions": ["avx2"]}
    return BenchResult(
        "float", [*rows, row("same", 1, 1.02, 0.98, 1.05), row("same", 8, 1.5, 1.4, 1.6)], {}, {"runs": 50}, machine, ["a note"]
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    tmp_path = tmp_path_factory.mktemp("picture")
    (tmp_path / "grid.png").write_bytes(grid_png([Panel("float", np.zeros((4, 8, 8, 1)))]))
    return ReportData(
        title="Title & <b>more</b>",
        summary=[
            Fact(label="SNR", value="41.3 dB", wanted="≥ 40 dB", passed=True),
            Fact(label="PSNR", value="29 dB", wanted="≥ 30 dB", passed=False),
            Fact(label="Time", value="6 min"),
        ],
        grid=tmp_path / "grid.png",
        snr=[
            SnrSeries(name="before <1>", timesteps=T, snr_db=[11.0, 30.0, 38.0], role="before"),
            SnrSeries(name="PyTorch", timesteps=T, snr_db=[20.0, 35.0, 42.0], role="reference"),
            SnrSeries(name="bundle", timesteps=T, snr_db=[20.1, 35.1, 41.9]),
        ],
        tables={
            "a.conv1": ScaleTable(timesteps=T, scales=[0.1, 0.2, 0.4], zero_points=[0, 0, 0]),
            "b.conv2": ScaleTable(timesteps=T, scales=[0.1, 0.1, 0.1], zero_points=[3, -5, 7]),
        },
        distillation=[
            BlockLoss(block="a", before=1e-3, after=1e-4, iterations=100),
            BlockLoss(block="b", before=1e-3, after=2e-3, iterations=100),
        ],
        dilation=[
            DilationRow(quantizer="a.conv1", rule="symmetric", unsaturated_share=0.5, range_ratio=0.97),
            DilationRow(quantizer="b.conv2", rule="none", unsaturated_share=0.0, range_ratio=1.0),
        ],
        latency=latency(),
        engines=[
            EngineRow.from_summary(
                {
                    "statement": "chosen ahead of time",
                    "backend": "tensorrt-rtx",
                    "compute_capability": "8.9",
                    "kernels": 141,
                    "planned_layers": 62,
                    "planned_int8": 61,
                    "conv_by_precision": {"fp16": 1, "int8": 33},
                    "gemm_by_precision": {},
                    "weights_bytes": 2_900_000,
                    "not_int8": [],
                },
                float_weights_bytes=10_000_000,
            )
        ],
        notes=["nothing was executed on a GPU"],
        commands=["dq-deploy quantize x -o y"],
        versions={"onnxruntime": "1.2.3"},
    )


@pytest.fixture(scope="module")
def html(full: ReportData) -> str:
    return render(full)


class Resources(HTMLParser):
    """Every address on the page, and every id."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def test_page_needs_nothing_but_itself(html: str) -> None:
    page = Resources()
    page.feed(html)
    assert page.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not re.findall(r"url\((?!#)", html)


def test_ids_are_unique(html: str) -> None:
    page = Resources()
    page.feed(html)
    assert page.ids
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#(.*?)\)", html)) <= set(page.ids)


def test_plots_are_well_formed_and_follow_the_theme(html: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(plots) == 5
    for plot in plots:
        root = ET.fromstring(plot)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        assert "var(--ink)" in plot or "var(--muted)" in plot
        assert not re.search("#010203|#040506|#070809|#0a0b0c", plot)


def test_texts_are_escaped(html: str) -> None:
    assert "<title>Title &amp; &lt;b&gt;more&lt;/b&gt;</title>" in html
    assert "before <1>" not in html
    assert "before &lt;1&gt;" in html


@pytest.mark.parametrize(
    "text",
    [
        "✓ reached",
        "✗ missed",
        '11.0 dB</td><td class="number">0</td>',
        "Training lowered the held-out loss in 1 of 2 blocks",
        "Channels of 1 of 2 quantizers are dilated",
        "zero-points in orange",
        "2.00 × faster",
        "1.50 × slower",
        "within the noise",
        "0.45–0.55",
        "Note: a note.",
        "tensorrt-rtx sm_89",
        "61 of 62",
        "33 int8, 1 fp16",
        '2.90 MB</td>\n<td class="number">0.29',
        "nothing was executed on a GPU",
        "dq-deploy quantize x -o y",
        "onnxruntime&nbsp;1.2.3",
    ],
)
def test_page_says(html: str, text: str) -> None:
    assert text in html


def test_sections_without_data_are_left_out() -> None:
    html = render(ReportData(title="Bare"))
    assert re.findall("<h2>(.*?)</h2>", html) == []
    assert "<svg" not in html
    assert "<h2>Latency</h2>" in render(ReportData(latency=latency()))


def test_same_data_same_page_and_json_round_trip(full: ReportData, html: str) -> None:
    assert html == render(ReportData.model_validate_json(full.model_dump_json()))


def test_many_quantizers_and_one_timestep_are_drawn() -> None:
    generator = np.random.default_rng(0)
    many = {
        f"layer.{i}": ScaleTable(timesteps=list(range(100)), scales=list(generator.uniform(0.1, 1, 100)), zero_points=[0] * 100)
        for i in range(80)
    }
    assert "All 80 quantizers" in render(ReportData(tables=many))
    one = {"layer": ScaleTable(timesteps=[0.0], scales=[0.1], zero_points=[0])}
    assert "All 1 quantizers" in render(ReportData(tables=one))


def test_write_report(tmp_path: Path) -> None:
    data = ReportData(title="Bare", notes=["one"])
    output = tmp_path / "new" / "report.html"
    assert write_report(output, data) == output
    assert output.read_text() == render(data)
    with pytest.raises(UsageError, match="report.html already exists"):
        write_report(output, data)
    write_report(output, ReportData(), force=True)
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


def test_pictures_must_be_there_and_pngs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such picture"):
        render(ReportData(grid=tmp_path / "absent.png"))
    (tmp_path / "fake.png").write_text("<script>")
    with pytest.raises(ArtifactError, match="is no PNG"):
        render(ReportData(grid=tmp_path / "fake.png"))


@pytest.mark.parametrize(
    ("part", "values"),
    [
        (SnrSeries, {"name": "s", "timesteps": T, "snr_db": [1.0]}),
        (ScaleTable, {"timesteps": T, "scales": [1.0, 2.0, 3.0], "zero_points": [0]}),
    ],
)
def test_lengths_must_agree(part: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="3 timesteps"):
        part(**values)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(ResourceError, match="cannot write .*page.html: No space left on device"):
        write_whole(tmp_path / "page.html", b"x")
    assert list(tmp_path.iterdir()) == []
