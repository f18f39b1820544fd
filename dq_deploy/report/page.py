"""One HTML page that needs nothing but itself: one block of data, one script that draws it, no request."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..artifacts.output_file import check_output_file, write_whole
from ..console import to_json
from .data import ReportData
from .headlines import verdict

# In the order in which they use each other.
_SCRIPTS = ("lib.js", "charts.js", "pictures.js", "heatmap.js", "layers.js", "sections.js")


def write_page(output: Path, data: ReportData, *, force: bool = False) -> None:
    """Write the page, whole or not at all.

    Raises UsageError (another suffix than .html, an existing output without ``force``) and ResourceError (the disk takes no more).
    """
    check_output_file(output, ".html", force=force)
    write_whole(output, render(data).encode())


def render(data: ReportData) -> str:
    """The page's HTML: the same data, the same page."""
    environment = Environment(
        loader=PackageLoader("dq_deploy.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["counts"] = _counts
    script = "\n".join(_template(name) for name in _SCRIPTS)
    return environment.get_template("report.html.j2").render(
        data=data,
        style=Markup(_template("report.css")),  # noqa: S704  our own file
        script=Markup(script),  # noqa: S704  our own files
        # The one script that may run on the page, whatever a name that slipped into its markup says.
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        json=Markup(embedded_json(data)),  # noqa: S704  holds no character that ends a script element
        lowered=sum(row.after < row.before for row in data.distillation),
        dilated=sum(row.dilated_share > 0 for row in data.dilation),
        not_as_planned=[(layer, engine) for layer in data.layers for engine in layer.reasons],
        verdict=verdict(data),
        float_types=sorted({dtype for row in data.engines for dtype in row.float_weights}),
    )


def embedded_json(data: ReportData) -> str:
    """The data as JSON in which no text can end the script element, or open another: <, > and & are escaped, as JSON allows."""
    text = json.dumps(to_json(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _template(name: str) -> str:
    return files("dq_deploy.report").joinpath("templates", name).read_text(encoding="utf-8")


def _counts(by_precision: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {precision}" for precision, count in sorted(by_precision.items(), key=lambda item: -item[1])) or "none"
