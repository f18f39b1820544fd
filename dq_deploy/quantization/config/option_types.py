"""Types of options that the user may write in more than one way, or that have bounds of their own."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, model_validator

from ...artifacts.records import Record
from ...formats.codebook import Codebook

MOST_SIGNIFICANT = 8
"""Bits of the codes that others are the most significant bits of."""
LEAST_BITS = 2


def no_bool(value: Any) -> Any:
    """Refuse ``true`` for a number, which Python takes for 1."""
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


def is_number(annotation: Any) -> bool:
    """Whether an option is a number, or none."""
    return bool({int, float} & {annotation, *get_args(annotation)})


def in_words(value: Any) -> Any:
    """A number as the text that names a choice."""
    return str(value) if type(value) is int else value


def _height_and_width(value: Any) -> Any:
    """A size as a pair, from ``512x768`` too."""
    if not isinstance(value, str):
        return value
    parts = value.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError("a size is height x width, such as 512x768")
    return tuple(int(part) for part in parts)


Bits = Annotated[int, BeforeValidator(no_bool), Field(ge=LEAST_BITS, le=8)]
Edge = Annotated[int, BeforeValidator(no_bool), Field(ge=1)]
Size = Annotated[tuple[Edge, Edge], BeforeValidator(_height_and_width)]


class CodebookOption(Record):
    """See ``formats.codebook.Codebook``."""

    length: int
    books: int

    @model_validator(mode="after")
    def _known(self) -> CodebookOption:
        self.made()
        return self

    def made(self) -> Codebook:
        """The codebook."""
        return Codebook(self.length, self.books)
