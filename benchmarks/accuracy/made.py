"""Sources that are made by a function: ``module:function`` or ``file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from dq_deploy.errors import DqDeployError, UsageError

from .settings import FUNCTION, Family

_NEEDED, _OPTIONAL = ("model", "scheduler", "sample_shape"), ("conditions", "held_out", "family")


class Made(TypedDict, total=False):
    """What such a function returns: ``model``, ``scheduler`` and ``sample_shape`` as ``dq_deploy.quantize`` takes them.

    ``conditions`` [P, ...] by name are calibrated under, ``held_out`` [Q, ...] are judged under (without them the same ones), both dealt in
    turn. ``family`` "transformer" says that the network is one.
    """

    model: torch.nn.Module
    scheduler: Any
    sample_shape: tuple[int, ...]
    conditions: Mapping[str, torch.Tensor]
    held_out: Mapping[str, torch.Tensor]
    family: Family


def make(source: str) -> Made:
    """Call the function. Raises UsageError where there is none, it fails, or what it returns does not fit."""
    place, _, name = source.rpartition(":")
    function: Callable[[], Any] | None = getattr(_module(place, source), name, None)
    if not callable(function):
        raise UsageError(f"{source}: there is no function '{name}' in {place}")
    try:
        found = function()
    except DqDeployError:
        raise
    except Exception as error:
        raise UsageError(f"{source} failed: {type(error).__name__}: {error}", "call it in Python to see where") from error
    _check(found, source)
    made: Made = found
    return made


def _module(place: str, source: str) -> Any:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        if not Path(place).is_file():
            raise UsageError(f"{source}: no such file: {place}")
        spec = importlib.util.spec_from_file_location(re.sub(r"\W", "_", Path(place).stem), place)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(spec.name, module)  # dataclasses look themselves up there
        spec.loader.exec_module(module)
        return module
    except DqDeployError:
        raise
    except Exception as error:
        raise UsageError(f"{source}: {place} cannot be imported: {type(error).__name__}: {error}") from error


def _check(found: Any, source: str) -> None:
    if not isinstance(found, Mapping):
        raise UsageError(f"{source} returns a {type(found).__name__}", f"return a dictionary with {', '.join(_NEEDED)}")
    problems = [f"'{key}' is missing" for key in _NEEDED if key not in found]
    problems += [f"'{key}' is not known" for key in found if key not in (*_NEEDED, *_OPTIONAL)]
    if "model" in found and not isinstance(found["model"], torch.nn.Module):
        problems.append(f"'model' is a {type(found['model']).__name__}, and no nn.Module")
    for key in ("conditions", "held_out"):
        values = found.get(key) or {}
        problems += [
            f"{key}['{name}'] is not a tensor [P, ...] of at least one value"
            for name, value in values.items()
            if not (isinstance(value, torch.Tensor) and value.dim() and len(value))
        ]
    names = [set(found.get(key) or {}) for key in ("conditions", "held_out")]
    if names[1] and names[0] != names[1]:
        problems.append("'conditions' and 'held_out' have other names: " + " and ".join(", ".join(sorted(n)) or "none" for n in names))
    if problems:
        raise UsageError(
            f"{source} returns no source: {'; '.join(problems)}", f"it needs {', '.join(_NEEDED)}; {', '.join(_OPTIONAL)} if any"
        )


def is_function(source: str) -> bool:
    """Whether a source names a function."""
    return not source.startswith("builtin:") and FUNCTION.fullmatch(source) is not None
