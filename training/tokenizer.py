"""The text pipeline's tokenizer: a token for each word that captions use."""

from __future__ import annotations

from typing import Any

from transformers import T5TokenizerFast  # type: ignore[attr-defined]  # a name that it makes when it is asked for

from training.captions import vocabulary

LENGTH = 16
"""Tokens of a prompt with its end: the longest caption has 12."""
_SPACE = "▁"


def tokenizer() -> Any:
    """A T5 tokenizer of the captions' words: 0 is padding, 1 the end, 2 whatever else somebody types."""
    special = ["<pad>", "</s>", "<unk>"]
    # Words are as likely as one another, the comma too, which stands at the end of one.
    words = [word if word == "," else _SPACE + word for word in vocabulary()]
    pieces = [(word, 0.0) for word in special] + [(word, -1.0) for word in words]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=LENGTH)
