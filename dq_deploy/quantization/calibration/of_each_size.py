"""The calibration that was asked for: of one size, or of each of several."""

from __future__ import annotations

from dataclasses import replace

from ...errors import UsageError
from ...sources import Source, takes_prompts, text_pipeline
from ..config import QuantizeConfig
from .picture_size import check_exact
from .pipeline_source import PipelineSource
from .sized_source import Size, SizedSource
from .source import CalibrationSource, Request, calibration_source


def calibration_of(request: Request, config: QuantizeConfig, source: Source) -> CalibrationSource:
    """As ``calibration_source`` chooses it, at every one of ``config.sizes``.

    Raises UsageError as that does, where sizes are asked of what has no height and width, and where a pipeline rounds one.
    """
    if not config.sizes:
        return calibration_source(request, config, source)
    if request.height is not None or request.width is not None:
        raise UsageError("--sizes has heights and widths, and --height or --width is given too", "leave one of them out")
    shape = source.sample_shape
    if takes_prompts(source) and not request.conditions:
        if request.prompts is not None:  # else it is refused before anything is loaded
            source = replace(source, pipeline=text_pipeline(source))

        def at(size: Size) -> CalibrationSource:
            made = calibration_source(replace(request, height=size[0], width=size[1]), config, source)
            if isinstance(made, PipelineSource):
                check_exact(made.pipeline, made.shape, size)
            return made
    elif len(shape) < 3:
        raise UsageError(f"--sizes are heights and widths, and a sample of {source.name} has the shape {list(shape)}", "leave --sizes out")
    else:

        def at(size: Size) -> CalibrationSource:
            return calibration_source(request, config, replace(source, sample_shape=(*shape[:-2], *size)))

    return SizedSource(tuple(map(at, config.sizes)), config.sizes, at)
