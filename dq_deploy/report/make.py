"""``dq_deploy.write_report``: from artefacts to the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..artifacts.output_file import check_output_file
from ..progress import Progress, silent
from ..sampling.request import Drawing
from .artifacts import gather
from .collect import Note, collect
from .data import ReportData
from .page import write_page
from .request import ReportRequest, Timing

__all__ = ["Drawing", "ReportRequest", "Timing", "write_report"]

_EVERYTHING_QUICK = ReportRequest()


def write_report(
    paths: Sequence[str | Path],
    output_html: str | Path,
    *,
    checkpoint: str | Path | None = None,
    wanted: ReportRequest = _EVERYTHING_QUICK,
    title: str | None = None,
    force: bool = False,
    progress: Progress = silent,
    note: Note = lambda _: None,
) -> ReportData:
    """Write one self-contained HTML page about a checkpoint and what was made from it; returns the page's data.

    ``paths`` are the checkpoint (or give ``checkpoint``), bundles, float bundles and engines. ``wanted`` says what to measure beside what
    the manifests hold: pictures, the error of every layer, checks of the bundles and, if requested, latency. What cannot be measured here
    is left out, and said to ``note``. A check that fails is on the page; ``enforce`` of the result raises for it.

    Raises UsageError (an existing output without ``force``, no checkpoint, settings that make no sense), ArtifactError (a damaged artefact,
    or one that was made from something else) and ResourceError (the disk takes no more).
    """
    output = Path(output_html)
    check_output_file(output, ".html", force=force)
    data = collect(gather(paths, checkpoint), wanted, progress=progress, note=note)
    if title is not None:
        data = data.model_copy(update={"title": title})
    write_page(output, data, force=force)
    return data
