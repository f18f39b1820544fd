"""Where models come from: a built-in name, a diffusers pipeline folder, a hub id, or an object in Python."""

from .ip_adapter import IpAdapter, check_adapter_pictures
from .load import load_source, module_source, reload_source
from .lora import Lora
from .pickles import allow_pickles
from .picture_pipeline import MODULE_ROUTE, check_complete, for_pictures
from .pictures import GivenPictures, Pictures
from .plain_copy import copied
from .resolve import builtin_names, builtin_path, builtin_prompts
from .source import Source, weights_sha256
from .text_pipeline import (
    asked_beside,
    picture_alone,
    prompted_class,
    runs_by_itself,
    takes_prompts,
    text_pipeline,
)

__all__ = [
    "MODULE_ROUTE",
    "GivenPictures",
    "IpAdapter",
    "Lora",
    "Pictures",
    "Source",
    "allow_pickles",
    "asked_beside",
    "builtin_names",
    "builtin_path",
    "builtin_prompts",
    "check_adapter_pictures",
    "check_complete",
    "copied",
    "for_pictures",
    "load_source",
    "module_source",
    "picture_alone",
    "prompted_class",
    "reload_source",
    "runs_by_itself",
    "takes_prompts",
    "text_pipeline",
    "weights_sha256",
]
