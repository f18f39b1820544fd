"""What a number is and how finely it is scaled, without torch: formats, schemes, and the names of scale tables."""

from .number import CODES, FORMATS, FP4, FP8, FP16, INT8, Kind, NumberFormat, in_planes, layer_bytes, of_bits, recorded, register_format
from .scheme import PER_CHANNEL, Activations, Granularity, ScaleSource, Scheme

__all__ = [
    "CODES",
    "FORMATS",
    "FP4",
    "FP8",
    "FP16",
    "INT8",
    "PER_CHANNEL",
    "Activations",
    "Granularity",
    "Kind",
    "NumberFormat",
    "ScaleSource",
    "Scheme",
    "in_planes",
    "layer_bytes",
    "of_bits",
    "recorded",
    "register_format",
]
