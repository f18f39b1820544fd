"""Pictures from a quantized model, in the real diffusers pipeline, beside the float model's from the same seeds."""

from .draw import Pictures, draw, not_drawable
from .picture_file import SampleResult, sample

__all__ = ["Pictures", "SampleResult", "draw", "not_drawable", "sample"]
