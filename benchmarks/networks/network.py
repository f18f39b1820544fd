"""What the benchmark knows of a network, and the source that the accuracy harness makes of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.accuracy.made import Made
from benchmarks.accuracy.settings import Family

from .conditions import condition_values
from .weights import make_sane, trained_weights

Conditions = Literal["none", "classes", "pictures", "tokens"]
Time = Literal["noise", "velocity", "flow", "edm"]
"""What a network predicts and along which noise: DDPM's noise or velocity, the velocity of a straight flow, EDM's preconditioned F."""


def scheduler_of(time: Time) -> Any:
    """The scheduler of diffusers that samples from such a network."""
    import diffusers

    if time == "flow":
        return diffusers.FlowMatchEulerDiscreteScheduler()
    if time == "edm":
        return diffusers.EDMEulerScheduler(sigma_data=0.5)
    if time == "velocity":
        return diffusers.DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    return diffusers.DDPMScheduler()


@dataclass(frozen=True)
class Network:
    """A network by name. ``build(**small)`` is the same structure at a size for tests; ``condition`` is the name of its third input."""

    name: str
    title: str
    build: Callable[..., nn.Module]
    time: Time
    shape: tuple[int, int, int] = (1, 32, 32)
    conditions: Conditions = "none"
    condition: str = ""
    condition_shape: tuple[int, ...] = ()
    family: Family = "unet"
    small: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 5e-4

    def fresh(self, **options: Any) -> nn.Module:
        """The network as its code initializes it, the same every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build(**options).eval()

    def inputs(self, count: int) -> dict[str, torch.Tensor]:
        """Conditions [count, ...] to try the network with, by name."""
        if self.conditions == "none":
            return {}
        values = condition_values(self.conditions, self.condition_shape, held_out=False)
        return {self.condition: values[torch.arange(count) % len(values)]}

    def make(self) -> Made:
        """The network with its trained weights, or with random ones of sane statistics, as a source of the accuracy harness."""
        model = self.fresh()
        weights = trained_weights(self.name)
        if weights is None:
            make_sane(model, self.shape, self.inputs(8), scheduler_of(self.time))
        else:
            model.load_state_dict(weights)
        return self.source(model, trained=weights is not None)

    def source(self, model: nn.Module, *, trained: bool = True) -> Made:
        """``model`` and how it is sampled from: calibrated under some conditions, judged under others.

        Random weights are taken to predict velocity where trained ones predict noise: as noise, what they say would be divided by the
        signal's share at the first steps, which makes chaos of the samples whoever quantizes.
        """
        time: Time = "velocity" if self.time == "noise" and not trained else self.time
        made: Made = {"model": model, "scheduler": scheduler_of(time), "sample_shape": self.shape, "family": self.family}
        if self.conditions != "none":
            for key, held_out in (("conditions", False), ("held_out", True)):
                made[key] = {self.condition: condition_values(self.conditions, self.condition_shape, held_out=held_out)}  # type: ignore[literal-required]
        return made


NAMES = (
    "denoising_diffusion", "unet2d", "adm", "song_unet", "k_diffusion", "super_resolution", "sd_unet", "u_vit", "sit", "dit", "pixart",
)  # fmt: skip
"""In the order of the tables: UNets, then transformers."""


def network(name: str) -> Network:
    """A network of the list."""
    found: Network = importlib.import_module(f"benchmarks.networks.zoo.{name}").NETWORK
    return found


def source_name(name: str) -> str:
    """What ``--source`` of the accuracy harness takes for it."""
    return f"benchmarks.networks.zoo.{name}:make"
