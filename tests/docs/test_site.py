"""The site builds without a warning, its links lead somewhere, it loads nothing from elsewhere, and its reference is whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import dq_deploy
from dq_deploy.cli import cli

ROOT = Path(__file__).parents[2]
_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "object": "data"}
_LOADED_LINKS = {"stylesheet", "icon", "preconnect", "preload", "prefetch", "dns-prefetch", "modulepreload", "manifest"}


class Page(HTMLParser):
    """What a page links to, what it loads, and the names in it that links lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.names |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in _LOADED and _LOADED[tag] in values:
            self.loaded.append(values[_LOADED[tag]])
        if tag == "link" and "href" in values and _LOADED_LINKS & set(values.get("rel", "").split()):
            self.loaded.append(values["href"])


def wrong_links(site: Path) -> Iterator[str]:
    """Links and pictures that lead nowhere, and whatever a page or a style sheet would load from another place."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    for path, page in pages.items():
        where = path.relative_to(site)
        yield from (f"{where} loads {url}" for url in page.loaded if _elsewhere(url))
        for url in (*page.links, *page.loaded):
            parts = urlsplit(url)
            if _elsewhere(url) or parts.scheme in ("mailto", "data", "javascript"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{where} links to {url}"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names | {"__skip"}:
                yield f"{where} links to {url}, where there is no such name"
    for path in site.rglob("*.css"):
        yield from (f"{path.name} loads {url}" for url in re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)", path.read_text()))


def _elsewhere(url: str) -> bool:
    return bool(urlsplit(url).netloc)


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text())


def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    # 404.html names its files from the root of a server.
    assert [wrong for wrong in wrong_links(site) if not wrong.startswith("404.html ")] == []


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ('<a href="gone.html">', "page.html links to gone.html"),
        ('<a href="#gone">', "page.html links to #gone, where there is no such name"),
        ('<img src="gone.png">', "page.html links to gone.png"),
        ('<script src="https://cdn.example/x.js"></script>', "page.html loads https://cdn.example/x.js"),
        ('<link rel="preconnect" href="//fonts.example">', "page.html loads //fonts.example"),
    ],
)
def test_a_wrong_link_is_found(tmp_path: Path, body: str, wrong: str) -> None:
    (tmp_path / "page.html").write_text(f'<h1 id="here"><a href="#here"></a></h1><a href="https://example.org">away</a>{body}')
    assert list(wrong_links(tmp_path)) == [wrong]


def test_a_font_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "style.css").write_text('@font-face { src: url("https://fonts.example/f.woff2") }')
    assert list(wrong_links(tmp_path)) == ["style.css loads https://fonts.example/f.woff2"]


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    page = (site / "cli.html").read_text()
    for name, command in cli.commands.items():
        assert f'id="{name}"' in page
        section = text_of(site / "cli.html").partition(f"dq-deploy {name} ")[2]
        for parameter in command.params:
            for option in parameter.opts:
                assert not option.startswith("--") or option in section, (name, option)


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "api.html").read_text()
    for name in dq_deploy.__all__:
        assert f'id="dq_deploy.{name}"' in page, name


@pytest.mark.parametrize("name", ["method", "numerics"])
def test_equations_are_drawn_without_a_script(site: Path, name: str) -> None:
    equations = re.findall(r'<div class="equation">(.*?)</div>', (site / f"{name}.html").read_text(), re.DOTALL)
    assert len(equations) == (ROOT / f"docs/{name}.md").read_text().count("```math") > 3
    for equation in equations:
        assert equation.startswith("<math")
        assert "\\" not in equation, "a command of LaTeX that the converter does not know"


def test_equations_have_a_font_of_their_own(site: Path) -> None:
    style = (site / "style.css").read_text()
    (font,) = re.findall(r'url\("(.*?)"\)', style)
    assert (site / font).read_bytes()[:4] == b"wOF2"
    assert (site / font).with_name("OFL.txt").is_file()
    assert '.equation math { font-family: "STIX Two Math"' in style


def test_a_page_is_a_link_away_from_every_other(site: Path) -> None:
    index = Page((site / "index.html").read_text())
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {"404.html"}
    assert pages <= {urlsplit(link).path or "index.html" for link in index.links} | {"index.html"}


def test_every_schema_is_listed() -> None:
    listed = set(re.findall(r"\]\(([^)]+\.json)\)", (ROOT / "docs/schemas/README.md").read_text()))
    assert listed == {path.name for path in (ROOT / "docs/schemas").glob("*.json")}
