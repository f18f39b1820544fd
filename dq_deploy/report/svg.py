"""Matplotlib figures as inline SVG that follows the page: its colours in light and dark, its font, its width."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Stand-ins that the page's CSS variables replace; no plot uses these colours otherwise.
INK, MUTED, RULE, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}
_ON_WHITE = {
    "var(--ink)": "#1b1f24",
    "var(--muted)": "#59626b",
    "var(--rule)": "#d8dde2",
    "var(--paper)": "#ffffff",
    "var(--font)": "sans-serif",
}
# Readable on white and on near-black, and distinct to people who see no red or no green.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#3d85c6", "#e08214", "#2a9d77", "#9b6bc4", "#8b929c"
WIDTH = 9.7  # inches; the page's column

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures made inside look like the page."""
    with mpl.rc_context(_STYLE):
        yield


@contextmanager
def on_paper() -> Iterator[None]:
    """Figures made inside are for a file of their own: dark on white, with real colours in the place of the page's variables."""
    paper: dict[Any, Any] = {"grid.color": "#dddddd", "axes.edgecolor": "#999999", "xtick.color": "#999999", "ytick.color": "#999999"}
    with mpl.rc_context({**_STYLE, **paper, "savefig.facecolor": "white", "svg.hashsalt": "dq-deploy"}):
        yield


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element. ``name`` keeps its ids apart from those of other figures on the page."""
    stream = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", bbox_inches="tight", pad_inches=0.04, dpi=144, metadata={"Date": None, "Creator": None})
    return _for_page(stream.getvalue(), name, description)


def _for_page(text: str, name: str, description: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", text)
    # Matplotlib names its groups alike in every figure, and nothing refers to them; what is referred to gets a name unique on the page.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'((?:href="|url\()#)', rf"\1{name}-", text)
    size = re.search(r'width="([\d.]+)pt" height="[\d.]+pt"', text)
    width = float(size.group(1)) * 4 / 3 if size else 800.0
    opening = f'role="img" aria-label="{_escaped(description)}" style="width:100%;max-width:{width:.0f}px;height:auto"'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', opening, text, count=1)


def standalone(svg: str) -> bytes:
    """An ``<svg>`` element as a file of its own: the page's variables replaced by colours for white paper."""
    for variable, colour in _ON_WHITE.items():
        svg = svg.replace(variable, colour)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{svg}'.encode()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, laid out without overlaps. Call it inside ``styled()``."""
    options: dict[str, Any] = {"figsize": (width, height), "layout": "constrained"}
    return Figure(**options)
