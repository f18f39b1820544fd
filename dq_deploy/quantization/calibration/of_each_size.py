"""The calibration that was asked for: of one size, or of each of several."""

from __future__ import annotations

from dataclasses import replace

from ...errors import UsageError
from ...sources import Source, runs_by_itself, text_pipeline
from ..config import QuantizeConfig
from .picture_size import check_exact
from .pipeline_source import PipelineSource
from .prompt_lengths import by_prompt_length
from .sized_source import Size, SizedSource, sizes_of
from .source import CalibrationSource, Request, calibration_source


def calibration_of(request: Request, config: QuantizeConfig, source: Source) -> CalibrationSource:
    """As ``calibration_source`` chooses it, at each of ``config.sizes`` and of the lengths of text ``config.tokens``, or of its prompts.

    Raises UsageError as that does, where sizes are asked of what has no height and width or lengths of what has no text, and where a
    pipeline rounds a size.
    """
    itself = runs_by_itself(source) and not request.conditions
    if config.tokens and not itself:
        raise UsageError(f"--tokens are lengths of a pipeline's text, and {source.name} takes none", "leave --tokens out")
    if config.sizes and (request.height is not None or request.width is not None):
        raise UsageError("--sizes has heights and widths, and --height or --width is given too", "leave one of them out")
    shape = source.sample_shape
    if itself:
        if (request.prompts is not None or request.pictures) and config.several_sizes:  # else it is refused before anything is loaded
            source = replace(source, pipeline=text_pipeline(source))

        def at(size: Size) -> CalibrationSource:
            height, width = size.edges or (request.height, request.width)
            made = calibration_source(replace(request, height=height, width=width, text_length=size.tokens), config, source)
            if isinstance(made, PipelineSource) and size.edges is not None:
                check_exact(made.pipeline, made.shape, size.edges)
            return made
    elif config.sizes and len(shape) < 3:
        raise UsageError(f"--sizes are heights and widths, and a sample of {source.name} has the shape {list(shape)}", "leave --sizes out")
    else:

        def at(size: Size) -> CalibrationSource:
            return calibration_source(request, config, source if size.edges is None else _at(source, size.edges))

    sizes = sizes_of(config.sizes, config.tokens)
    if config.several_sizes:
        return SizedSource(tuple(map(at, sizes)), tuple(sizes), at)
    made = at(sizes[0])
    return by_prompt_length(made) or made


def _at(source: Source, edges: tuple[int, int]) -> Source:
    return replace(source, sample_shape=(*source.sample_shape[:-2], *edges))
