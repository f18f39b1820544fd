"""Where models come from: a built-in name, a diffusers pipeline folder, a hub id, or an object in Python."""

from .load import load_source, source_from_module
from .resolve import builtin_names, builtin_path
from .source import Source, weights_sha256

__all__ = ["Source", "builtin_names", "builtin_path", "load_source", "source_from_module", "weights_sha256"]
