"""``Unet`` of the package denoising-diffusion-pytorch, which its users install: weight standardization, RMSNorm, linear attention.

``pip install --no-deps denoising-diffusion-pytorch ema-pytorch einops``: its dependency torchvision must match torch's build, and the
network does not need it.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dq_deploy.errors import EnvironmentProblem

from ..network import Network

_MODULES = ("torchvision", "torchvision.transforms", "torchvision.utils")


def build(dim: int = 48) -> nn.Module:
    """Raises EnvironmentProblem where the package is not installed."""
    import accelerate  # noqa: F401  looks for torchvision itself, and must not find the stand-in
    import diffusers  # noqa: F401

    try:
        with _stand_in():
            package: Any = importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    except ImportError as error:
        hint = "pip install --no-deps denoising-diffusion-pytorch ema-pytorch einops"
        raise EnvironmentProblem(f"this network needs denoising-diffusion-pytorch: {error}", hint) from None
    model: nn.Module = package.Unet(dim=dim, dim_mults=(1, 2, 4), channels=1, flash_attn=False)
    return model


@contextmanager
def _stand_in() -> Iterator[None]:
    """Empty modules in torchvision's place while the package is imported: only its trainer and its data set use it."""
    before = {name: sys.modules.get(name) for name in _MODULES}
    modules = {name: types.ModuleType(name) for name in _MODULES}
    whole: Any = modules["torchvision"]
    whole.transforms, whole.utils = modules["torchvision.transforms"], modules["torchvision.utils"]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


NETWORK = Network("denoising_diffusion", "denoising-diffusion-pytorch, `Unet(dim=48)`", build, "noise", small={"dim": 8})
make = NETWORK.make
