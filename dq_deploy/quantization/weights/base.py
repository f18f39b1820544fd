"""What every layer of integers is, and what those with a weight have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import nn

from ...formats import PER_CHANNEL, NumberFormat, Scheme, of_bits
from ...formats.codebook import Codebook
from ...formats.tables import BIAS, CODES, PACKED_CODES, WEIGHT_SCALE
from .. import numerics
from ..config import QuantizeConfig
from ..grid import held, spacing
from ..integrity import check_weight, read_format, read_widths
from .footprint import Footprint
from .packing import pack_int4, unpack_int4

_REACH = 0.3
"""Steps from its code that a weight may be after ``set_codes``: where it was tells distillation more (docs/decisions/rounding.md)."""


MOST_INPUTS = 16_384
"""Of a row of weights that is rounded as one: H has 8 bytes for each pair of inputs, 2.1 GB, and its factor as many again."""


class Frozen(NamedTuple):
    """What a checkpoint stores of a weight: codes [O, ...], and scales [O] or of a block each."""

    codes: torch.Tensor
    scale: torch.Tensor


class QuantizedLayer(nn.Module, ABC):
    """A product in a quantized graph, called with what it reads: ``Quantized``, or floats if it is ``weight_only``."""

    kind: ClassVar[str]
    """Its name in plans, and in the graph of a checkpoint."""
    weight_only: ClassVar[bool] = False
    """Whether its activation stays float."""
    channel_axis: ClassVar[int] = -1
    """Of its output."""
    frozen: Frozen | None = None
    """Of its weight, once it is frozen."""

    @property
    def stored(self) -> Frozen:
        """What it was frozen to."""
        assert self.frozen is not None
        return self.frozen

    def config(self) -> dict[str, Any]:
        """What, beside its tensors, makes this layer."""
        return {"op": self.kind}

    @classmethod
    @abstractmethod
    def from_tensors(cls, name: str, config: Mapping[str, Any], tensors: dict[str, torch.Tensor], bias: str) -> Self:
        """The frozen layer of ``config`` and ``tensors`` (codes [O, ...], scales [O], ``bias`` [O]). Raises ArtifactError."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint stores of it when it is frozen, by part: codes [O, ...], scales [O], a bias [O]."""
        return {}

    def freeze(self) -> None:
        """Fix it to exactly what a checkpoint stores."""

    def parameter_groups(self, config: QuantizeConfig) -> list[dict[str, Any]]:  # noqa: ARG002  # nothing to train
        """What distillation moves, and how fast, as an optimizer takes it."""
        return []


class QuantizedWeight(QuantizedLayer):
    """Base of the layers with weights: symmetric codes with a scale for each output channel, trained as floats until frozen."""

    scheme: Scheme = PER_CHANNEL
    codebook: Codebook | None = None
    """What its weight is made of, where codes are not of one weight each."""
    groups: int = 1
    """Of outputs, each with inputs of its own."""
    widths: tuple[int, ...] = ()
    """Bits to which its codes may be sliced, from its own down; empty: it has one width."""
    width: int | None = None
    """Of these, the one that it multiplies with now (``widths.at_width``); None: all its bits."""
    error_kept: float = 1.0
    """Part of their rounding error that its weights have: all, but while something is judged which GPTQ follows (initial/initialize)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, fmt: NumberFormat) -> None:
        super().__init__()
        self.format = fmt
        self.weight = nn.Parameter(weight.detach().clone().float())
        self.log_scale = nn.Parameter(numerics.weight_scale(self.weight.detach(), fmt).log())
        self.bias = nn.Parameter(bias.detach().clone().float()) if bias is not None else None

    @property
    def bits(self) -> int:
        """Bits of its codes."""
        return self.format.bits

    def config(self) -> dict[str, Any]:
        """As ``QuantizedLayer`` says; with the ``shape`` of packed codes."""
        shape = {"shape": list(self.frozen[0].shape)} if self.frozen is not None and self.format.packed else {}
        widths = {"widths": list(self.widths)} if self.widths else {}
        return super().config() | self.format.record() | shape | widths

    @classmethod
    def from_tensors(cls, name: str, config: Mapping[str, Any], tensors: dict[str, torch.Tensor], bias: str) -> Self:
        """As ``QuantizedLayer`` says."""
        options = {key: value for key, value in config.items() if key not in ("op", "bits", "format", "shape", "widths")}
        fmt, block = read_format(name, config), options.get("block")
        if shape := config.get("shape"):  # without: a layer of more bits, or a checkpoint from before codes were packed
            tensors[f"{name}.{CODES}"] = unpack_int4(tensors.pop(f"{name}.{PACKED_CODES}"), shape)
        check_weight(name, tensors, fmt, bias=bias, block=block)
        codes, scale = tensors[f"{name}.{CODES}"], tensors[f"{name}.{WEIGHT_SCALE}"]
        # The float weight only says how many rows there are: it is dropped in the next line, and a large model's would take gigabytes.
        layer = cls(torch.zeros(len(codes), block or 1), tensors.get(bias), fmt, **options)
        layer.set_frozen(codes, scale)
        layer.widths = read_widths(name, config, fmt)
        return layer

    def tensors(self) -> dict[str, torch.Tensor]:
        """As ``QuantizedLayer`` says."""
        codes, scale = self.stored
        stored = {PACKED_CODES: pack_int4(codes)} if self.format.packed else {CODES: codes}
        return stored | {WEIGHT_SCALE: scale} | ({} if self.bias is None else {BIAS: self.bias})

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Frozen codes follow the module to another device too."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.frozen is not None:
            self.frozen = Frozen(*map(fn, self.frozen))
        return self

    @torch.no_grad()
    def set_weight(self, weight: torch.Tensor, *, clip: bool = False) -> None:
        """Replace the float weight [O, ...] (after dilation) and its scale [O]: of its whole range, or ``clip`` it to the least error."""
        self.weight.copy_(weight)
        scale = numerics.clipped_weight_scale if clip else numerics.weight_scale
        self.log_scale.copy_(scale(self.weight, self.format).log())

    @property
    def footprint(self) -> Footprint | None:
        """Which inputs an output meets at each position.

        None: a form of weight whose rows cannot be rounded input by input (``rounding``); each of its codes is the nearest.
        """
        return None

    def matrix(self) -> torch.Tensor:
        """The float weight [O, ...] as ``float_product`` takes it."""
        return self.weight

    def settled(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales [O] or of any shape as a checkpoint stores them: those of fp16 where it is ``weight_only``."""
        return numerics.half_precision(scale) if self.weight_only else scale

    def rounded(self) -> dict[str, torch.Tensor]:
        """What ``take_rounded`` takes, by part: codes [O, ...] and scales [O]."""
        return {CODES: self.integer_weight()[0].to(held(self.format)), WEIGHT_SCALE: self.steps()}

    def take_rounded(self, parts: Mapping[str, torch.Tensor]) -> None:
        """Have the codes [O, ...] and scales [O] that ``rounding`` found, by part."""
        self.set_codes(parts[CODES], parts[WEIGHT_SCALE])

    @torch.no_grad()
    def set_codes(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        """Take a ``scale`` [O], and move the float weight only as far as it must to have these ``codes`` [O, ...], one for each weight."""
        self.log_scale.copy_(scale.log())
        steps = numerics.per_channel(self.steps(), self.weight, 0)
        codes = codes.reshape(self.weight.shape).to(self.weight)
        reach = _REACH * spacing(codes, self.format)
        self.weight.copy_((self.weight / steps).clamp(codes - reach, codes + reach) * steps)

    def freeze(self) -> None:
        """Fix the weight to codes and drop the float one; if it is ``weight_only``, with scales that fp16 has."""
        with torch.no_grad():
            if self.weight_only and self.frozen is None:  # the scales first, so that the codes are of these
                self.log_scale.copy_(self.settled(self.log_scale.exp()).log())
            codes, scale = self.integer_weight()
        scale = self.settled(scale).clone()
        self.set_frozen(codes.to(getattr(torch, self.format.torch_dtype)), scale)

    def set_frozen(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        """Take codes [O, ...], in the type of the format, and scale [O] from a checkpoint."""
        self.requires_grad_(False)
        self.frozen = Frozen(codes, scale)
        self.weight.data = torch.empty(0)

    def slice(self, bits: int) -> None:
        """Keep of the frozen codes so many bits, one of its ``widths``, and be a layer of that width alone."""
        codes, scale = numerics.sliced(self.stored.codes.float(), self.stored.scale, self.format, bits)
        self.format, self.widths = of_bits(bits), ()
        self.frozen = Frozen(codes.to(getattr(torch, self.format.torch_dtype)), scale)

    def integer_weight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes as floats [O, ...] and scale [O], of its ``width``."""
        if self.frozen is not None:
            codes, scale = self.frozen.codes.float(), self.frozen.scale
        else:
            scale = self.log_scale.exp()
            codes = numerics.quantize_weight(self.weight, scale, self.format)
            if self.error_kept != 1:
                codes = torch.lerp(self.weight / numerics.per_channel(scale, self.weight, 0), codes, self.error_kept)
        return (codes, scale) if self.width is None else numerics.sliced(codes, scale, self.format, self.width)

    def steps(self) -> torch.Tensor:
        """Quantization steps of the weight [O]."""
        return self.log_scale.detach().exp()

    def steps_by_weight(self) -> torch.Tensor:
        """The same for each weight [O, ...]."""
        return numerics.per_channel(self.steps(), self.weight, 0).expand_as(self.weight)

    def by_output(self, steps: torch.Tensor) -> torch.Tensor:
        """Steps [O], as ``steps`` gives them, of those for each weight."""
        return steps.reshape(len(self.weight), -1)[:, 0].float()

    def parameter_groups(self, config: QuantizeConfig) -> list[dict[str, Any]]:
        """Weight, scales and bias, at the rates of the first step."""
        # In units of the layer's quantization step, so that one rate fits every layer and every bit-width.
        step = float(self.steps().mean()) * self._mean_spacing()
        groups = [{"params": [self.weight], "lr": config.lr_weight * step}, {"params": [self.log_scale], "lr": config.lr_scale}]
        if self.bias is not None:
            groups.append({"params": [self.bias], "lr": config.lr_weight * float(self.bias.detach().abs().mean() + step)})
        return groups

    @torch.no_grad()
    def _mean_spacing(self) -> float:
        """How far the codes are from the next, in units of the scale."""
        return float(spacing(self.integer_weight()[0], self.format).mean()) if self.format.floating else 1.0

    def divide_output(self, s: torch.Tensor) -> None:
        """Divide the frozen layer's output channels by s [O]: its scales and its bias, the codes stay."""
        codes, scale = self.stored
        self.frozen = Frozen(codes, scale / numerics.per_channel(s, scale, 0))
        if self.bias is not None:
            self.bias.data = self.bias.data / s

    @abstractmethod
    def float_product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What the layer gives [N, ..., O, ...] with a float input x [N, ..., C, ...] and ``weight`` [O, C, ...]."""

    def finish(self, y: torch.Tensor, w_scale: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        """Integer sums [N, ..., O, ...] → output: · (s_w [O] · s_t [N]) + bias [O], in fp32."""
        y = y * (numerics.per_channel(w_scale, y, self.channel_axis) * numerics.per_sample(x_scale, y))
        return y if self.bias is None else y + numerics.per_channel(self.bias, y, self.channel_axis)
