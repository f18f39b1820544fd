"""Whether a pipeline draws at the size requested of it: some take height and width, and draw at a size of their own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ...errors import UsageError

_SPATIAL = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")
_BINNED = (16, 32, 64, 128, 256)  # edges of latents that some pipeline of diffusers has a table for
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
PICTURE_SIZE = ("height", "width", "num_frames")
"""Arguments of a pipeline's call that say what size it draws at."""
TEXT_LENGTH = "max_sequence_length"
"""The argument that says how many tokens its text has."""
SIZE_HINT = "--height and --width set the size of the pictures, --frames their number in a video (from Python: height=, width=, frames=)"


def own_size(pipeline: Any, component: str) -> dict[str, Any]:
    """Arguments with which a pipeline draws at its network's own size, where it would look that up in a table that lacks it (PixArt's)."""
    binned = "use_resolution_binning" in inspect.signature(type(pipeline).__call__).parameters
    edge = (getattr(getattr(pipeline, component), "config", None) or {}).get("sample_size")
    return {"use_resolution_binning": False} if binned and edge not in _BINNED else {}


def check_size(pipeline: Any, component: str, shape: tuple[int, ...], asked: Mapping[str, int], *, beside: bool = False) -> None:
    """Raise UsageError where samples of ``shape`` (without the batch) are not of the picture size ``asked`` for.

    Sizes may be off by what a pipeline rounds them by, and are in pixels. A pipeline that does not say how many pixels a latent stands for
    is believed. ``beside``: the tokens of a picture, about as many, may stand behind those that are drawn (FLUX Kontext).
    """
    name = type(pipeline).__name__
    height, width, frames = (asked.get(key) for key in ("height", "width", "num_frames"))
    scale = _factor(pipeline, _SPATIAL)
    if scale and len(shape) >= 3:
        drawn = {"height": shape[-2] * scale, "width": shape[-1] * scale}
        off = {key: size for key, size in drawn.items() if key in asked and abs(size - asked[key]) >= 2 * scale}
        if off:
            raise UsageError(
                f"the {name} was asked for {_sizes(asked)}, and calls its {component} with latents {list(shape)} for "
                f"{drawn['height']}×{drawn['width']} pixels: it draws at sizes of its own",
                f"--height {drawn['height']} --width {drawn['width']} is one of them; or leave --height and --width out",
            )
    if scale and len(shape) == 2 and height and width and not frames:
        tokens = {patch: -(-height // (scale * patch)) * -(-width // (scale * patch)) for patch in (1, 2)}
        counts = (shape[0], shape[0] // 2) if beside else (shape[0],)
        if not any(_near(count, height, width, scale * patch) for patch in tokens for count in counts):
            raise UsageError(
                f"the {name} was asked for {_sizes(asked)}, and calls its {component} with {shape[0]:,} tokens, where {tokens[2]:,} are "
                "that size: it draws at sizes of its own",
                "leave --height and --width out",
            )
    ratio = _factor(pipeline, _TEMPORAL)
    if ratio and frames and len(shape) == 4:
        latent = (frames - 1) // ratio + 1
        if all(abs(size - latent) > 1 for size in shape[:2]):
            raise UsageError(
                f"the {name} was asked for {frames} frames, and calls its {component} with latents {list(shape)}, where {latent} frames of "
                "latents are that many: it draws as many as it likes",
                "leave --frames out",
            )


def check_exact(pipeline: Any, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """Raise UsageError where samples of ``shape`` (without the batch) are not of this height and width, which the pipeline rounded."""
    drawn = _drawn(_factor(pipeline, _SPATIAL), shape, size)
    if drawn != size:
        asked, rounded = (f"{height}x{width}" for height, width in (size, drawn))
        raise UsageError(f"a {type(pipeline).__name__} is asked for {asked} pixels, and draws {rounded}", f"give {rounded} among --sizes")


def _drawn(scale: int | None, shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of such samples, whose latents have ``scale`` pixels a side; ``size`` where that is not known."""
    if scale and len(shape) >= 3:
        return shape[-2] * scale, shape[-1] * scale
    steps = [scale, 2 * scale] if scale and len(shape) == 2 else []  # tokens are one latent, or 2×2
    found = ((size[0] // step * step, size[1] // step * step) for step in steps if shape[0] == (size[0] // step) * (size[1] // step))
    return next(found, size)


def speaks_of_size(reason: str) -> bool:
    """Whether a pipeline's own message is about the size of what it will draw."""
    return any(word in reason for word in ("height", "width", "num_frames", "frames", "dimensions must be"))


def _near(tokens: int, height: int, width: int, pixels: int) -> bool:
    """Whether so many tokens, each of ``pixels`` squared, are a picture of this size, give or take the rounding of its edges."""
    lowest, highest = ((max(1, height // pixels + by)) * max(1, width // pixels + by) for by in (-1, 1))
    return lowest <= tokens <= highest


def _factor(pipeline: Any, names: tuple[str, ...]) -> int | None:
    found = (getattr(pipeline, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _sizes(asked: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('num_frames', 'frames')} {size}" for name, size in asked.items())
