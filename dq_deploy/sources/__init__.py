"""Where models come from: a built-in name, a diffusers pipeline folder, a hub id, or an object in Python."""

from .load import load_source, module_source, reload_source, source_from_module
from .lora import Lora
from .pickles import allow_pickles
from .plain_copy import copied
from .resolve import builtin_names, builtin_path
from .source import Source, weights_sha256
from .text_pipeline import takes_prompts, text_pipeline

__all__ = [
    "Lora",
    "Source",
    "allow_pickles",
    "builtin_names",
    "builtin_path",
    "copied",
    "load_source",
    "module_source",
    "reload_source",
    "source_from_module",
    "takes_prompts",
    "text_pipeline",
    "weights_sha256",
]
