"""Scale tables as a picture of its own, PNG or SVG."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from ..artifacts.scale_tables import ScaleTable
from ..artifacts.writing import write_bytes
from ..errors import UsageError
from .svg import on_paper
from .table_plots import draw_curves, draw_map

SUFFIXES = (".png", ".svg")
_MOST_CURVES = 12


def check_picture(path: Path, *, force: bool) -> None:
    """Raise UsageError for a file that is not a PNG or SVG by its name, exists already, or has no folder."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} is neither {' nor '.join(SUFFIXES)}", "name the picture FILE.png or FILE.svg")
    if path.exists() and not (force and path.is_file()):
        raise UsageError(f"{path} exists already", "choose another name, or --force" if path.is_file() else "choose another name")
    if not path.parent.is_dir():
        raise UsageError(f"no such folder: {path.parent}")


def save_tables(tables: Mapping[str, ScaleTable], path: Path) -> None:
    """Draw tables into a PNG or SVG: a few as curves with their zero-points, many as one map. The same tables give the same bytes.

    Raises UsageError when there is nothing to draw.
    """
    if not tables:
        raise UsageError("there are no scale tables to draw: the float baseline has none")
    with on_paper():
        canvas = draw_curves(tables, _MOST_CURVES) if len(tables) <= _MOST_CURVES else draw_map(tables)
        # What matplotlib would write of itself and of the time changes from one machine and run to the next.
        metadata = {"Date": None, "Creator": None} if path.suffix.lower() == ".svg" else {"Software": None}
        contents = BytesIO()
        canvas.savefig(contents, format=path.suffix.lower()[1:], dpi=144, bbox_inches="tight", metadata=metadata)
    write_bytes(path, contents.getvalue())
