"""What the suite knows about a family of denoisers: how to make a small one, how its pipelines call it, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

PROMPTS, TOKENS = 3, 7
USUAL_SNR_DB = 12.0
STAGES = ("quantize", "export qdq", "export onnxruntime", "check", "build", "build openvino")

Conditions = dict[str, Any]


@dataclass(frozen=True)
class Refusal:
    """How a family that cannot go is told so: the stage, the class of ``dq_deploy.errors`` and a part of its message."""

    stage: str
    error: str
    text: str
    why: str


@dataclass(frozen=True)
class Family:
    """A denoiser class of diffusers in its smallest configuration.

    ``shape`` is of one sample, without the batch; ``conditions`` are [PROMPTS, ...]. ``products_in_float`` is the share of the
    multiply-accumulates that may stay in float beside the layers that read the sample, and ``why`` says which and for what reason;
    ``int8`` is the least share of planned layers that the compiler makes INT8, ``snr_db`` the least SNR against the float model.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    conditions: Callable[[], Conditions] = dict
    scheduler: Callable[[], Any] = DDIMScheduler
    options: Mapping[str, Any] = field(default_factory=dict)
    products_in_float: float = 0.0
    int8: float = 1.0
    snr_db: float = USUAL_SNR_DB
    why: str = ""
    refused: Refusal | None = None
    quick: bool = False

    def model(self) -> nn.Module:
        """The network, with weights that are the same on every machine."""
        torch.manual_seed(0)
        return randomized(self.make())


def flow(**config: Any) -> Callable[[], Any]:
    """Flow matching's scheduler, which most transformers have."""
    return lambda: FlowMatchEulerDiscreteScheduler(**config)


def randomized(model: nn.Module) -> nn.Module:
    """Weights of unit gain in the place of all that has more than one dimension.

    Fresh networks have zeros in their last layers (their output would be zero, whatever is quantized) and unwritten memory in some tables.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel() or 1
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
            elif any(word in name for word in ("alpha", "gate", "gain")) or not torch.isfinite(parameter).all():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return model.eval()


def seeded(*shape: int, seed: int = 1) -> torch.Tensor:
    """Normal numbers that depend on nothing but the shape and the seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(width: int, tokens: int = TOKENS, name: str = "encoder_hidden_states") -> Conditions:
    """Hidden states of a text encoder."""
    return {name: seeded(PROMPTS, tokens, width)}


def mask(tokens: int = TOKENS, name: str = "encoder_attention_mask", dtype: torch.dtype = torch.int64) -> Conditions:
    """An attention mask: prompts of other lengths, padded to ``tokens``."""
    lengths = torch.tensor([tokens, tokens - 2, tokens - 3])[:, None]
    return {name: (torch.arange(tokens)[None] < lengths).to(dtype)}


def positions(tokens: int, axes: int = 3, width: int = 0) -> torch.Tensor:
    """Token positions [tokens, axes]: all zero (text), or rows and columns of a picture ``width`` tokens wide."""
    places = torch.zeros(tokens, axes)
    if width:
        index = torch.arange(tokens)
        places[:, -2], places[:, -1] = index // width, index % width
    return places


class Fixed(nn.Module):
    """A network with arguments that are not conditions (sizes, positions), as one writes it who quantizes a module and not a pipeline.

    Its own timestep is ``time_offset + time_scale · timestep``: many flow-matching networks take 0 … 1 where the scheduler has 0 … 1000.
    """

    def __init__(self, network: nn.Module, *, time_scale: float = 1.0, time_offset: float = 0.0, **constants: Any) -> None:
        super().__init__()
        self.network, self.time_scale, self.time_offset, self.constants = network, time_scale, time_offset, constants

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, **conditions: Any) -> torch.Tensor:
        """See the class."""
        time = timestep * self.time_scale + self.time_offset if (self.time_scale, self.time_offset) != (1.0, 0.0) else timestep
        output = self.network(hidden_states=hidden_states, timestep=time, **conditions, **self.constants)
        return output if isinstance(output, torch.Tensor) else output[0]


def network_name(model: nn.Module) -> str:
    """The class of diffusers that a family's module is, or that it calls."""
    return type(getattr(model, "network", model)).__name__
