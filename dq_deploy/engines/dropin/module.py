"""The drop-in as a ``torch.nn.Module``: what pipelines, accelerate and Python do with a model beside calling it.

An engine computes where it was loaded, in the types that its graph has. So moving the module says only where and of what the pipeline
should make its tensors, and whatever would change weights, or needs layers or gradients, is refused with what to do instead.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_utils import ModelMixin

from ...artifacts import Artifact
from ...errors import UsageError
from .answers import NotInDropInError, class_has, plain_attribute

_KEPT = ("the engine's weights were set when the model was quantized and exported", "put the float model back for this")

_OF_HOOKS = ("forward", "_hf_hook", "_old_forward", "_diffusers_hook")
"""What accelerate and diffusers put on a module that they move: a hook, and a ``forward`` around the module's own."""


@dataclass(frozen=True)
class Origin:
    """What a drop-in was loaded from, and how: enough to load it again in another process."""

    path: Path
    manifest_sha256: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, artifact: Artifact, options: Mapping[str, Any]) -> Origin:
        """``options`` are those of ``load``."""
        return cls(artifact.path.absolute(), artifact.as_parent.manifest_sha256, dict(options))


class EngineModule(ModelMixin):
    """A module whose forward pass is an engine's. ``config`` is the diffusers model's, and answers what a pipeline asks beside ``forward``.

    It is one of diffusers' models, so that ``from_pretrained(…, unet=drop_in)`` takes it; what these can beside that is refused below.

    Its one parameter is empty: tools that move models look at where their parameters are. ``is_drop_in`` tells who reads weights.
    """

    is_drop_in = True
    # Module's own: diffusers' would warn of every change of type.
    to, cuda = torch.nn.Module.to, torch.nn.Module.cuda  # type: ignore[assignment]
    half, float = torch.nn.Module.half, torch.nn.Module.float

    def __init__(self, model_config: Mapping[str, Any], origin: Origin | None = None) -> None:
        ModelMixin.__init__(self)  # not that of a class that the drop-in is one of as well (as_one_of)
        self.config = FrozenDict(model_config)
        self.origin = origin
        self.placement = torch.nn.Parameter(torch.empty(0), requires_grad=False)
        self.training = False

    @property
    def device(self) -> torch.device:
        """Where the pipeline should make its tensors."""
        return self.placement.device

    @property
    def dtype(self) -> torch.dtype:
        """What the pipeline should make its tensors of."""
        return self.placement.dtype

    @property
    def is_cache_enabled(self) -> bool:
        """False: there are no caches between steps."""
        return False

    def __getattr__(self, name: str) -> Any:
        """What diffusers' own model of this configuration has: ``unet.in_channels`` from the configuration, plain numbers from its class.

        Raises NotInDropInError, which is an AttributeError too, for its layers and for the methods that change them.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            own = self.__dict__
            if "origin" not in own or name.startswith("__"):
                raise
            config, origin = own["config"], own["origin"]
            if name.startswith("_") and not class_has(config, name):
                raise
            if name in config:
                return config[name]
        found = plain_attribute(config, name)
        if found is None:
            raise NotInDropInError(name, config.get("_class_name"), origin.path if origin else None)
        return found

    def train(self, mode: bool = True) -> Self:
        """Raises UsageError, except for ``mode=False``."""
        if mode:
            raise UsageError(f"a drop-in cannot be trained: {_KEPT[0]}", _KEPT[1])
        return super().train(mode=False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Raises UsageError, except for False."""
        if requires_grad:
            raise UsageError(f"a drop-in has no gradients: {_KEPT[0]}", _KEPT[1])
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A module of its own, with its own device and type, on the same engine."""
        twin = self.__copy__()
        memo[id(self)] = twin
        return twin

    def __copy__(self) -> Self:
        twin = self.__class__.__new__(self.__class__)
        for name, value in self.__dict__.items():
            if name not in _OF_HOOKS:
                # The dicts are Module's own registries, such as that of the parameters.
                twin.__dict__[name] = copy.copy(value) if name.startswith("_") and isinstance(value, dict) else value
        twin.placement = torch.nn.Parameter(self.placement.detach().clone(), requires_grad=False)
        return twin


class _Refused:
    """A method of diffusers' models that the drop-in lacks: asked for it, Python goes on to ``EngineModule.__getattr__``."""

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError


for _name in {name for kind in ModelMixin.__mro__[:-1] for name in vars(kind)} - set(dir(torch.nn.Module)) - set(vars(EngineModule)):
    if not _name.startswith("_") and callable(getattr(ModelMixin, _name)):
        setattr(EngineModule, _name, _Refused())


@functools.lru_cache(maxsize=16)
def as_one_of(module: type[EngineModule], kind: type[ModelMixin]) -> Any:
    """A class of ``module`` that is ``kind`` too, for whoever asks by ``isinstance``; what ``kind`` does with its layers is refused."""
    own = {name for base in module.__mro__ for name in vars(base)}
    others = {name for base in kind.__mro__ for name in vars(base) if not name.startswith("_")} - own
    return type(module.__name__, (module, kind), {"config": None, **dict.fromkeys(others, _Refused())})


def check_no_gradients(inputs: Mapping[str, Any]) -> None:
    """Raise UsageError where a caller wants gradients through the model: they would be missing without a word."""
    with_gradients = [name for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.requires_grad]
    if with_gradients and torch.is_grad_enabled():
        raise UsageError(
            f"a drop-in has no gradients, and input '{with_gradients[0]}' asks for them",
            "call it under torch.no_grad(), or use the float model",
        )
