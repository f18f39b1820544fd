"""A pipeline with a drop-in inside cannot be saved: its folder holds float models, and diffusers reads no bundle from it.

diffusers would write all other parts, only warn of this one, and leave ``"unet": [null, null]`` in the index, over one that was right.
"""

from __future__ import annotations

import functools
from typing import Any

from ...errors import UsageError
from .module import EngineModule

_MARK = "_refuses_drop_ins"


def guard_saving() -> None:
    """Let ``DiffusionPipeline.save_pretrained`` refuse pipelines with a drop-in, before it writes anything. Once is enough."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    if not hasattr(DiffusionPipeline.save_pretrained, _MARK):
        DiffusionPipeline.save_pretrained = _guarded(DiffusionPipeline.save_pretrained)  # type: ignore[method-assign]


def _guarded(save: Any) -> Any:
    @functools.wraps(save)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name, part in vars(self).items():
            part = getattr(part, "_orig_mod", part)  # noqa: PLW2901  torch.compile wraps what it compiles
            if isinstance(part, EngineModule):
                raise UsageError(
                    f"the pipeline's {name} is a drop-in{f' that runs {part.origin.path}' if part.origin else ''}, and a pipeline's folder "
                    "holds float models: nothing was written",
                    f"put the float model back to save it; the pipeline is had again with pipe.{name} = dq_deploy.load(PATH)",
                )
        return save(self, *args, **kwargs)

    setattr(save_pretrained, _MARK, True)
    return save_pretrained
