"""What transformers and diffusers say while they load that is none of a user's business here."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = "transformers.utils.import_utils"


def _is_of_interest(record: logging.LogRecord) -> bool:
    """Image processors without torchvision are as good for what pipelines need of them here; everything else is said."""
    return "requires torchvision (not installed); falling back" not in record.getMessage()


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Let transformers take image processors of PIL for those of torchvision without a warning."""
    logger = logging.getLogger(_LOGGER)
    logger.addFilter(_is_of_interest)
    try:
        yield
    finally:
        logger.removeFilter(_is_of_interest)


_LORA_LOGGERS = ("diffusers.loaders.peft", "diffusers.loaders.lora_base", "diffusers.utils.peft_utils")


@contextmanager
def without_advice() -> Iterator[None]:
    """Let diffusers load an adapter without warnings: most have nothing for the text encoder, and misfits we judge ourselves."""
    loggers = [logging.getLogger(name) for name in _LORA_LOGGERS]

    def none(_record: logging.LogRecord) -> bool:
        return False

    for logger in loggers:
        logger.addFilter(none)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(none)


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
