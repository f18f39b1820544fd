"""What a shell may put where a value is: names that are known without torch or an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from ..formats.presets import PRESETS

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def one_of(names: Callable[[], Iterable[str]], *, also: str | None = None) -> Complete:
    """Those of the names that begin as typed; ``also``: what else it may be ("dir", "file"), which the shell completes itself."""

    def complete(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in names() if name.startswith(typed)]
        return found or ([CompletionItem(typed, type=also)] if also else [])

    return complete


def _builtins() -> list[str]:
    folder = Path(__file__).parents[1] / "sources" / "builtin"  # the package itself would import torch
    return sorted(f"builtin:{path.name}" for path in folder.iterdir() if path.is_dir())


def _capabilities() -> list[str]:
    from ..engines.descriptors.registry import builders

    return list(dict.fromkeys(name for engine in builders().values() for name in engine.building.compute_capabilities))


def _rules() -> list[str]:
    from ..exporters.lint import RULES

    return [rule.id for rule in RULES if rule.severity == "error"]


def _gpus() -> list[str]:
    from ..engines.devices.gpu_names import GPUS

    return [name for names in GPUS.values() for name in names]


def _known_capabilities() -> list[str]:
    from ..engines.devices.gpu_names import GPUS

    return list(GPUS)


presets = one_of(lambda: PRESETS)
devices = one_of(lambda: ("cpu", "cuda", "cuda:0", "cuda:1"))
sources = one_of(_builtins, also="dir")
compute_capabilities = one_of(_capabilities)
lint_rules = one_of(_rules)
gpus = one_of(_gpus)
known_capabilities = one_of(_known_capabilities)
known_devices = one_of(lambda: ["cpu", *(f"sm_{name.replace('.', '')}" for name in _known_capabilities()), *_gpus()])
