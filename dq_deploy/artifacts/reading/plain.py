"""Bytes and JSON from files of others, with a bound on what is taken into memory."""

from __future__ import annotations

import json
import math
import re
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ...errors import ArtifactError

# Of a manifest or a layer report: those of a network with 4,000 layers have some megabytes.
JSON_LIMIT = 256 << 20
_LONGEST_POINTER = 1024  # bytes, as Git LFS specifies
Record = TypeVar("Record", bound=BaseModel)


def read_bytes(path: Path, *, limit: int | None = None, hint: str | None = None) -> bytes:
    """Contents of a regular file of at most ``limit`` bytes.

    Raises ArtifactError for a larger one, and for a pipe or a device, which would never end. A file that is missing or may not be read is
    the caller's to judge: OSError.
    """
    size = regular_file(path, hint=hint)
    if limit is not None and size > limit:
        raise ArtifactError(f"{path} has {size} bytes, and at most {limit} are read", hint)
    with path.open("rb") as stream:
        return stream.read() if limit is None else stream.read(limit)


def regular_file(path: Path, *, hint: str | None = None) -> int:
    """Size in bytes of a file that is not a pipe or device. Raises ArtifactError, and OSError as above."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ArtifactError(f"{path} is not a regular file", hint)
    return found.st_size


def refuse_stand_in(path: Path) -> None:
    """Raise ArtifactError for what stands in a file's place: the pointer that Git LFS leaves, or a web page that came for a download.

    A file that is missing or may not be read is the caller's to judge: OSError.
    """
    with path.open("rb") as stream:
        head = stream.read(_LONGEST_POINTER)
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        size = re.search(rb"^size (\d+)$", head, re.MULTILINE)
        of = f" of {int(size[1])} bytes" if size else ""
        raise ArtifactError(f"{path} is a Git LFS pointer to a file{of}, and not that file", "fetch it: git lfs pull")
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise ArtifactError(
            f"{path} is a web page, and not the file that its name promises", "download the file itself, logged in if need be"
        )


def read_json(path: Path, what: str, *, hint: str | None = None) -> Any:
    """The JSON value in a file: UTF-8, no key twice, no NaN or infinity. Raises ArtifactError saying what is wrong with which file."""
    content = read_bytes(path, limit=JSON_LIMIT, hint=hint)
    try:
        return parse_json(content)
    except ValueError as error:
        refuse_stand_in(path)
        raise ArtifactError(f"{path} is not {what}: {error}", hint) from None


def parse_json(content: bytes | str) -> Any:
    """As ``read_json``, from bytes or text. Raises ValueError."""
    try:
        text = content.decode() if isinstance(content, bytes) else content
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_record(path: Path, model: type[Record], what: str, *, hint: str | None = None) -> Record:
    """A JSON file as a pydantic ``model``. Raises ArtifactError naming up to five fields that do not fit."""
    return as_record(read_json(path, what, hint=hint), model, f"{path} is not {what}", hint=hint)


def as_record(value: Any, model: type[Record], complaint: str, *, hint: str | None = None) -> Record:
    """A JSON value as a pydantic ``model``; ``complaint`` begins the ArtifactError otherwise."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:5])
        raise ArtifactError(f"{complaint}: {problems}", hint) from None
    except RecursionError:
        raise ArtifactError(f"{complaint}: it is nested too deeply", hint) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is beyond the range of a double")
    return number
