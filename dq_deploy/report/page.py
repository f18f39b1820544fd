"""One HTML page that needs nothing but itself: plots inline, pictures embedded, no script, no request."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import ArtifactError, UsageError
from .data import ReportData, SnrSeries
from .files import check_output_file, write_whole
from .plots import distillation_plot, latency_plot, snr_plot
from .table_plots import scale_curves, scale_map

_PNG = b"\x89PNG\r\n\x1a\n"


def write_report(output_html: str | Path, data: ReportData, *, force: bool = False) -> Path:
    """Write the page; returns its path.

    Raises UsageError (an existing output without ``force``, no such picture) and ArtifactError (a picture that is no PNG).
    """
    output = Path(output_html)
    check_output_file(output, ".html", force=force)
    write_whole(output, render(data).encode())
    return output


def render(data: ReportData) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=PackageLoader("dq_deploy.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"lowest": _lowest, "median": statistics.median, "counts": _counts}
    return environment.get_template("report.html.j2").render(
        data=data,
        grid=None if data.grid is None else _embedded(data.grid),
        plots={name: Markup(svg) for name, svg in _plots(data).items()},  # noqa: S704  made by matplotlib, which escapes its texts
        zero_points=any(any(table.zero_points) for table in data.tables.values()),
        lowered=sum(row.after < row.before for row in data.distillation),
        dilated=sum(row.rule != "none" for row in data.dilation),
    )


def _plots(data: ReportData) -> dict[str, str]:
    plots = {}
    if data.snr:
        plots["snr"] = snr_plot(data.snr)
    if data.tables:
        plots |= {"scales": scale_map(data.tables), "curves": scale_curves(data.tables)}
    if data.distillation:
        plots["distillation"] = distillation_plot(data.distillation)
    if data.latency:
        plots["latency"] = latency_plot(data.latency)
    return plots


def _embedded(picture: Path) -> str:
    if not picture.is_file():
        raise UsageError(f"no such picture: {picture}")
    content = picture.read_bytes()
    if not content.startswith(_PNG):
        raise ArtifactError(f"{picture} is no PNG")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _lowest(series: SnrSeries) -> tuple[float, float]:
    """(SNR in dB, timestep) of the worst step."""
    return min(zip(series.snr_db, series.timesteps, strict=True))


def _counts(by_precision: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {precision}" for precision, count in sorted(by_precision.items(), key=lambda item: -item[1])) or "none"
