"""Where an artefact's source lies: what a manifest keeps so that later stages find it from any folder, and after a move."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .details import Origin, Place

_HUB_LIKE = 2  # parts of OWNER/NAME


def absolute_place(path: Path) -> str:
    """The absolute path, with ``~`` for the home folder: whoever reads a published manifest need not learn whose it was."""
    absolute = _absolute(path)
    try:
        return (Path("~") / absolute.relative_to(Path.home().resolve())).as_posix()
    except (ValueError, RuntimeError):  # not below it; there is none
        return str(absolute)


def place_relative(details: dict[str, Any], artifact: Path) -> None:
    """Note in a manifest's ``details`` where its source lies, and what belongs to it, as seen from its folder ``artifact``."""
    source = details.get("source")
    if not isinstance(source, dict):
        return
    source = _placed(source, artifact)
    beside = [name for name in ("lora", "ip_adapter", "controlnet", "pipeline") if isinstance(source.get(name), dict)]
    source |= {name: _placed(source[name], artifact) for name in beside}
    details["source"] = source


def places(entry: Place, artifact: Path) -> list[Path]:
    """Where a source or a LoRA should lie: first as seen from the artefact, then where it was; empty for what is not a path."""
    if not entry.absolute:
        return []
    found = [Path(os.path.normpath(_absolute(artifact) / entry.relative))] if entry.relative else []
    return list(dict.fromkeys([*found, Path(entry.absolute).expanduser()]))


def source_name(source: Origin) -> str:
    """What to call a source before others: a hub id or a built-in name as it is, of a path the last folder alone."""
    return Path(source.absolute or source.reference).name if is_path(source) else source.reference


def is_path(source: Origin) -> bool:
    """Whether a source lay in a folder."""
    reference = source.reference
    path_like = Path(reference).is_absolute() or reference.startswith((".", "~")) or len(Path(reference).parts) > _HUB_LIKE
    return bool(source.absolute) or path_like


def _placed(entry: Mapping[str, Any], artifact: Path) -> dict[str, Any]:
    if not entry.get("absolute"):
        return dict(entry)
    place = Path(entry["absolute"]).expanduser()
    return {**entry, "relative": Path(os.path.relpath(place, _absolute(artifact))).as_posix()}


def _absolute(path: Path) -> Path:
    """Without links above it; a link of its own is kept, whose name says what it is."""
    absolute = path.expanduser().absolute()
    return absolute.parent.resolve() / absolute.name
