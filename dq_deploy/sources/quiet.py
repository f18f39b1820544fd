"""What transformers says while its classes load that is none of a user's business here."""

from __future__ import annotations

import logging
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
