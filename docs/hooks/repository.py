"""The site's pages that lie outside of docs/, and links between the two: what is a link on GitHub is one on the site.

README.md is the front page. A link to a file of the repository that is not a page (source code, say) keeps its text and loses its target.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
_FRONT = "README.md"
_PATTERNS = (_FRONT, "CHANGELOG.md", "CONTRIBUTING.md", "training/README.md", "benchmarks/*/RESULTS.md",
             "benchmarks/engines/[AF]*.md", "benchmarks/accuracy/README.md", "benchmarks/accuracy/STUDY.md", "benchmarks/*/images/*.png",
             "tests/RELIABILITY.md")  # fmt: skip
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_WIDE = 5  # marks of a row that has five columns or more
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and pictures from outside of docs/."""
    for pattern in _PATTERNS:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, _site_path(path.relative_to(ROOT).as_posix()), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Point the links of a page, which are relative to its place in the repository, to the pages of the site.

    Beside a wide table there is no room for a table of contents.
    """
    if page.file.src_uri == "index.md" or any(line.count("|") > _WIDE for line in markdown.splitlines() if line.startswith("|--")):
        page.meta["hide"] = ["toc"]
    pieces = _FENCE.split(markdown)
    pieces[::2] = [_LINK.sub(lambda link: _rewritten(link, page.file.src_uri, files), piece) for piece in pieces[::2]]
    return "".join(pieces)


def _rewritten(link: re.Match[str], page: str, files: Any) -> str:
    bang, text, target, anchor = link.groups()
    path = os.path.normpath(os.path.join(os.path.dirname(_repository_path(page)), target))  # noqa: PTH118, PTH120  paths of links
    if (ROOT / path).is_dir():
        path = next((f"{path}/{name}" for name in ("README.md", "RESULTS.md") if (ROOT / path / name).is_file()), path)
    site = _site_path(path)
    if files.get_file_from_path(site) is None:
        # What is nowhere stays as it is, for mkdocs to complain about.
        return text if (ROOT / path).exists() else link[0]
    relative = os.path.relpath(site, os.path.dirname(page))  # noqa: PTH120
    return f"{bang}[{text}]({relative}{anchor or ''})"


def _site_path(path: str) -> str:
    return "index.md" if path == _FRONT else path.removeprefix("docs/")


def _repository_path(page: str) -> str:
    if page == "index.md":
        return _FRONT
    return f"docs/{page}" if (ROOT / "docs" / page).is_file() else page
