"""Pictures from a quantized model, in the real diffusers pipeline, beside the float model's from the same seeds."""

from .draw import DrawnPictures, draw, not_drawable
from .picture_file import SampleResult, sample
from .request import Drawing

__all__ = ["Drawing", "DrawnPictures", "SampleResult", "draw", "not_drawable", "sample"]
