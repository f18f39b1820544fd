"""What transformers and diffusers say while they load that is none of a user's business here."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

_IMPORTS = ("transformers.utils.import_utils",)
_LORA_LOGGERS = ("diffusers.loaders.peft", "diffusers.loaders.lora_base", "diffusers.utils.peft_utils")


@contextmanager
def _filtered(names: Sequence[str], said: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Let loggers say only what ``said`` lets pass."""
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(said)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(said)


def without_torchvision() -> AbstractContextManager[None]:
    """Let transformers take image processors of PIL for those of torchvision without a warning: they are as good here."""
    return _filtered(_IMPORTS, lambda record: "requires torchvision (not installed); falling back" not in record.getMessage())


def without_advice() -> AbstractContextManager[None]:
    """Let diffusers load an adapter without warnings: most have nothing for the text encoder, and misfits we judge ourselves."""
    return _filtered(_LORA_LOGGERS, lambda _: False)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep diffusers and transformers from drawing bars of their own; progress is the caller's to show."""
    names = ["diffusers.utils.logging", *(["transformers.utils.logging"] if "transformers" in sys.modules else [])]
    libraries = [importlib.import_module(name) for name in names]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


@contextmanager
def no_warnings() -> Iterator[None]:
    """Keep diffusers from warning of what it does to a model by itself."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
