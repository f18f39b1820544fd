"""Fences of ``math`` as MathML, which browsers draw without a script; GitHub draws the same fences itself."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> Any:
    """Hand the fences to ``math``. Said here, since a function that mkdocs.yml names would have to be on the path."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": math})
    return config


def math(source: str, *_: Any, **__: Any) -> str:
    """A fence's LaTeX as a block of MathML."""
    return f'<div class="equation">{convert(source, display="block")}</div>'
