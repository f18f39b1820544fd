"""Which pipeline of diffusers draws from the pictures that are given: the user's own, or another class that takes the same parts."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from .pictures import Pictures, flags, needed_by, parameters_of, words

MODULE_ROUTE = (
    "quantize its {component} as a module: dq_deploy.quantize(pipeline.{component}, ..., scheduler=..., sample_shape=(C, H, W), "
    "conditions={{...}})"
)
"""What goes with any pipeline; to be formatted with its denoiser's name."""


def for_pictures(pipeline: Any, component: str, pictures: Pictures) -> tuple[Any, dict[str, str]]:
    """The pipeline that takes these ``pictures``, and what its call names each kind of them.

    That is ``pipeline`` itself where its class takes them (``model_index.json`` named it), else the class that is named after it, or that
    diffusers' AutoPipelineForInpainting or AutoPipelineForImage2Image has for it, with the same parts.

    Raises UsageError for a pipeline that no class of diffusers lets begin with them, and for one that asks for more.
    """
    kind = type(pipeline)
    found = parameters_of(kind, pictures.names)
    if found is None:
        pipeline = _same_parts(pipeline, component, pictures)
        kind, found = type(pipeline), parameters_of(type(pipeline), pictures.names)
    if found is None:
        raise _unknown(kind, component, pictures)
    if missing := [name for name in needed_by(kind) if name not in pictures.names]:
        raise UsageError(f"a {kind.__name__} draws from {words(missing)} too, and none is given", f"give {flags(missing)}")
    return pipeline, found


def check_complete(pipeline_class: Any) -> None:
    """Raise UsageError for a pipeline that cannot do without pictures, where none are given."""
    if missing := needed_by(pipeline_class):
        raise UsageError(f"a {pipeline_class.__name__} draws from {words(missing)}, and none is given", f"give {flags(missing)}")


def _same_parts(pipeline: Any, component: str, pictures: Pictures) -> Any:
    if not pictures.image:
        raise _unknown(type(pipeline), component, pictures)
    try:
        made = _maker(type(pipeline), pictures).from_pipe(pipeline)
    except ValueError:  # it knows no such pipeline, or that asks for a part more
        raise _unknown(type(pipeline), component, pictures) from None
    made.set_progress_bar_config(disable=True)
    return made


def _maker(kind: Any, pictures: Pictures) -> Any:
    """The class named after this one (ChromaImg2ImgPipeline, which no automatic choice has), else diffusers' automatic choice."""
    import diffusers

    suffix = "InpaintPipeline" if pictures.mask else "Img2ImgPipeline"
    named = getattr(diffusers, kind.__name__.removesuffix("Pipeline") + suffix, None)
    return named or (diffusers.AutoPipelineForInpainting if pictures.mask else diffusers.AutoPipelineForImage2Image)


def _unknown(kind: Any, component: str, pictures: Pictures) -> UsageError:
    return UsageError(
        f"{words(pictures.names)} given, and a {kind.__name__} takes none, and no other class that does was found for its parts",
        MODULE_ROUTE.format(component=component),
    )
