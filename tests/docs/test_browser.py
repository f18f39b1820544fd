"""The site in a real browser: no text is cut on a wide screen or on a phone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.browser import Open, cut_text, resized

PAGES = ("index", "quickstart", "cli", "large-models", "accuracy", "deploy-tensorrt")
CUT = """
<body style="margin: 0; font: 16px monospace">
<p>this is whole</p>
<p style="white-space: nowrap">{long} runs out of the page</p>
<div style="overflow: hidden; width: 90px; white-space: nowrap">hidden {long}</div>
<pre style="overflow-x: auto">dq-deploy {long}</pre>
<div style="overflow-x: auto"><table><tr><td style="white-space: nowrap">a table {long}</td></tr></table></div>
"""


class Silent(SimpleHTTPRequestHandler):
    """A server that logs nothing."""

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site on a server of this machine: search needs one."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("width", [1300, 420])
@pytest.mark.parametrize("page", PAGES)
def test_no_text_is_cut(open_page: Open, address: str, page: str, width: int) -> None:
    browser = resized(open_page(f"{address}/{page}.html"), width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert cut_text(browser) == []


def test_cut_text_is_found(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(CUT.format(long="x" * 200))
    found = cut_text(resized(open_page(tmp_path / "page.html"), 420))
    assert [text.split()[0] for text in found] == ["x" * 200, "hidden", "dq-deploy"]
