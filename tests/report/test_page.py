"""The page: whole, self-contained, and true to its data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dq_deploy.artifacts.output_file import write_whole
from dq_deploy.console import to_json
from dq_deploy.errors import AccuracyGateError, ResourceError, UsageError
from dq_deploy.report.data import ReportData, ScaleTable, SnrSeries
from dq_deploy.report.headlines import headlines
from dq_deploy.report.page import render, write_page
from tests.report.conftest import ATTACK, T, Written, latency, report_data


@pytest.fixture(scope="module")
def html() -> str:
    return render(report_data("plain"))


class Parsed(HTMLParser):
    """Every address on the page, every id, and the scripts, as a browser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.policy = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "script":
            self.scripts.append((values, ""))
        if tag == "meta" and values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.scripts and self.scripts[-1][1] == "" and self.cdata_elem == "script":
            self.scripts[-1] = (self.scripts[-1][0], data)


def test_page_needs_nothing_but_itself(written: Written, html: str) -> None:
    for page in (html, written.path.read_text()):
        assert not re.findall(r"[a-z]+://|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(|sendBeacon", page)
        assert Parsed(page).addresses
        assert all(address.startswith(("data:", "#")) for address in Parsed(page).addresses)


def test_only_our_script_may_run(html: str) -> None:
    page = Parsed(html)
    (block, data), (plain, script) = page.scripts
    assert block == {"type": "application/json", "id": "data"}
    assert json.loads(data)["title"] == "Title plain"
    assert plain == {}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy
    assert page.policy.startswith("default-src 'none'; img-src data:;")
    assert page.handlers == []
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)


def test_names_do_not_become_markup(attacked: ReportData, html: str) -> None:
    page = render(attacked)
    assert ATTACK not in page
    harmless, found = Parsed(html), Parsed(page)
    assert found.tags == harmless.tags
    assert found.handlers == []
    assert len(found.scripts) == 2
    assert json.loads(found.scripts[0][1]) == to_json(attacked)
    assert not set("<>&") & set(found.scripts[0][1])


def test_ids_are_unique(html: str) -> None:
    page = Parsed(html)
    assert page.ids
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize(
    "text",
    [
        "<title>Title plain</title>",
        '<li class="failed"><strong>1 of 2</strong>',
        '<p class="verdict">The quantized images have 35.0 dB of PSNR against the float model’s (30.0 dB at worst), plain failed',
        "and the fastest is 2.0 × as fast as float, engine on this CPU (batch 1).</p>",
        '<td class="value passed">41.3 dB</td>',
        '<td class="value failed">29 dB</td>',
        "2 images of seeds 0 to 1, 3 steps, by plain in plain, and by the float model",
        '<th>before plain</th><td class="number">11.0</td><td class="number">30.0</td>',
        '<th>bundle plain</th><td class="number">20.1</td><td class="number">–</td>',
        '✗ failed</span><br>failure plain<br>b<br>c<br>and 1 more</td>',
        '<td class="number">0.123 dB</td><td class="number">0.5 dB</td>',
        "2 held-out seeds were sampled to the end",
        "with every step quantized the final sample has 24.5 dB",
        '<td class="number">50 to 100</td><td class="number">99.8 %</td>\n<td class="number">26.5 dB</td><td class="number">–</td>',
        "<em>Clipped</em> is the share of held-out values",
        "on 4 held-out samples",
        "Layers left in float (1)",
        "kept plain",
        "Training lowered the held-out loss in 1 of 2 blocks",
        "Channels of 1 of 2 activations are dilated",
        "none 31.5 dB, plain 30.0 dB",
        "folded into norm plain",
        "2.00 × faster",
        "1.50 × slower",
        "within the noise",
        "0.45–0.55",
        "Note: a note plain.",
        "Kernels were chosen plain.",
        "61 of 62 in INT8 and FP8",
        "33 int8, 1 fp16",
        '<td class="number">3.10 MB</td>\n<td class="number">2.90 MB</td><td class="number">0.49</td><td class="number">0.29</td>',
        "of FP16’s</th>",
        "<td>engine plain</td><td>fp16</td><td>reason plain</td>",
        "note plain",
        "dq-deploy quantize plain",
        "ab12",
        "plain&nbsp;1.2.3",
    ],
)  # fmt: skip
def test_page_says(html: str, text: str) -> None:
    assert text in html


def test_sections_without_data_are_left_out() -> None:
    html = render(ReportData(title="Bare"))
    assert re.findall("<h2>(.*?)</h2>", html) == []
    assert 'data-part="' not in re.sub(r"<(style|script).*?</\1>", "", html, flags=re.DOTALL)
    assert "<h2>Latency</h2>" in render(ReportData(latency=latency("")))


def test_a_dilation_that_served_nothing() -> None:
    data = report_data("plain")
    untouched = render(data.model_copy(update={"dilation": [row for row in data.dilation if not row.dilated_share]}))
    assert "No channel is dilated: nothing that was tried served the network better than s = 1. Rules tried" in untouched


def test_same_data_same_page_and_json_round_trip(html: str) -> None:
    assert html == render(ReportData.model_validate_json(report_data("plain").model_dump_json()))


def test_write_page(tmp_path: Path) -> None:
    data = ReportData(title="Bare", notes=["one"])
    output = tmp_path / "new" / "report.html"
    write_page(output, data)
    assert output.read_text() == render(data)
    with pytest.raises(UsageError, match="report.html already exists"):
        write_page(output, data)
    write_page(output, ReportData(), force=True)
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]
    with pytest.raises(UsageError, match="does not end in .html"):
        write_page(tmp_path / "report.txt", data)


def test_a_failed_check_is_raised_on_request() -> None:
    with pytest.raises(AccuracyGateError, match="plain: failure plain"):
        report_data("plain").enforce()
    ReportData().enforce()


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


def test_the_headline_names_the_formats_that_were_planned() -> None:
    found = [tile for tile in headlines(report_data("plain")) if tile.label.startswith("planned layers")]
    assert [(tile.value, tile.label, tile.passed) for tile in found] == [
        ("61 of 62", "planned layers in INT8 and FP8 kernels (plain)", False)
    ]
