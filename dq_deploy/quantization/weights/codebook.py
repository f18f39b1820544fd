"""Layers whose weights are sums of codewords: what is stored is an index for several weights, what is multiplied stays INT8 codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

from ...formats import NumberFormat
from ...formats.codebook import Codebook
from ...formats.tables import BIAS, CODEBOOK_CODES, CODEWORDS, WEIGHT_SCALE
from ..config import QuantizeConfig
from ..integrity import check_codebook, read_format
from .base import QuantizedWeight
from .per_channel import QuantizedConv2d, QuantizedLinear


def sums(codes: torch.Tensor, codewords: torch.Tensor) -> torch.Tensor:
    """Σ_m C_m[c_m] [R, K] of ``codes`` [R, K/d, M] and ``codewords`` [M, 256, d]."""
    chosen = [book[codes[:, :, m].long()] for m, book in enumerate(codewords)]
    total: torch.Tensor = torch.stack(chosen).sum(dim=0).flatten(1)
    return total


class CodebookWeight(QuantizedWeight):
    """W[o, ·] = s_w[o] · Σ_m C_m[c_m], clipped to INT8, for ``length`` weights of a row at a time (``formats.codebook``).

    Until codes are found (``rounding.codebooks``) the weight is INT8, so that what is calibrated meanwhile sees no rounding that will not
    be. Then codes stay, and codewords, scales and the bias are trained.
    """

    codebook: Codebook
    codes: torch.Tensor | None
    codewords: torch.Tensor

    def _empty_codebook(self, length: int, books: int) -> None:
        self.codebook = Codebook(length, books)
        self.shape = list(self.weight.shape)
        self.register_buffer("codes", None, persistent=False)
        self.codewords = nn.Parameter(torch.empty(0))

    def config(self) -> dict[str, Any]:
        """What, beside its tensors, makes this layer: the ``shape`` of its weight, and the codebook."""
        own = {"shape": self.shape, "length": self.codebook.length, "books": self.codebook.books}
        return super().config() | own

    @classmethod
    def from_tensors(cls, name: str, config: Mapping[str, Any], tensors: dict[str, torch.Tensor], bias: str) -> Self:
        """As ``QuantizedLayer`` says."""
        options = {key: value for key, value in config.items() if key not in ("op", "format", "shape")}
        fmt, shape = read_format(name, config), list(config["shape"])
        check_codebook(name, tensors, Codebook(options["length"], options["books"]), shape, bias=bias)
        layer = cls(torch.zeros(shape[0], 1), tensors.get(bias), fmt, **options)
        layer.shape = shape
        layer.set_codebook(*(tensors[f"{name}.{part}"] for part in (CODEBOOK_CODES, CODEWORDS, WEIGHT_SCALE)))
        layer.freeze()
        layer.set_frozen(layer.stored.codes, tensors[f"{name}.{WEIGHT_SCALE}"])  # not what a logarithm makes of it
        return layer

    def tensors(self) -> dict[str, torch.Tensor]:
        """As ``QuantizedLayer`` says."""
        return self.rounded() | ({} if self.bias is None else {BIAS: self.bias})

    def rounded(self) -> dict[str, torch.Tensor]:
        """As ``QuantizedWeight`` says: indices uint8 [O, K/d, M], codewords int8 [M, 256, d], scales [O]."""
        assert self.codes is not None
        scale = self.frozen.scale if self.frozen is not None else self.steps()
        return {CODEBOOK_CODES: self.codes, CODEWORDS: self.codewords.detach().round().to(torch.int8), WEIGHT_SCALE: scale}

    def take_rounded(self, parts: Mapping[str, torch.Tensor]) -> None:
        """As ``QuantizedWeight`` says."""
        self.set_codebook(parts[CODEBOOK_CODES], parts[CODEWORDS], parts[WEIGHT_SCALE])

    @torch.no_grad()
    def set_codebook(self, codes: torch.Tensor, codewords: torch.Tensor, scale: torch.Tensor) -> None:
        """Take indices [O, K/d, M], codewords [M, 256, d] and scales [O]; the float weight goes."""
        device = self.log_scale.device
        self.codes = codes.to(device)
        self.codewords.data = codewords.to(device).float()
        self.log_scale.data = scale.to(device).log()
        self.weight.data = torch.empty(0, device=device)
        self.weight.requires_grad_(False)

    def integer_weight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes as floats [O, ...] and scale [O]; a gradient passes through the rounding of codewords, and where nothing is clipped."""
        if self.frozen is not None or self.codes is None:
            return super().integer_weight()
        whole = self.codewords + (self.codewords.round() - self.codewords).detach()
        return sums(self.codes, whole).clamp(*self.format.code_range()).reshape(self.shape), self.log_scale.exp()

    def freeze(self) -> None:
        """Fix the codewords to integers; the codes that are multiplied lie beside them."""
        if self.codes is None:
            raise RuntimeError("a codebook layer is frozen before its codes were found")
        with torch.no_grad():
            self.codewords.round_().clamp_(-127, 127)
            codes, scale = self.integer_weight()
        self.set_frozen(codes.to(torch.int8), scale.clone())

    def parameter_groups(self, config: QuantizeConfig) -> list[dict[str, Any]]:
        """Codewords, scales and bias; a codeword moves in units of what it is worth, its own spread."""
        if self.codes is None:
            return super().parameter_groups(config)
        spread = float(self.codewords.detach().std(dim=1).mean())
        _, *others = super().parameter_groups(config)  # all but the float weight
        return [{"params": [self.codewords], "lr": config.lr_weight * spread}, *others]


class CodebookConv2d(CodebookWeight, QuantizedConv2d):
    """Convolution of codes [N, C, H, W] with a weight [O, C/g, kh, kw] that is made of codewords."""

    kind = "codebook-conv2d"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, fmt: NumberFormat, stride: list[int], padding: list[int],
                 dilation: list[int], groups: int, length: int, books: int) -> None:  # fmt: skip
        super().__init__(weight, bias, fmt, stride, padding, dilation, groups)
        self._empty_codebook(length, books)


class CodebookLinear(CodebookWeight, QuantizedLinear):
    """Matrix product of codes [..., C] with a weight [O, C] that is made of codewords."""

    kind = "codebook-linear"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, fmt: NumberFormat, length: int, books: int) -> None:
        super().__init__(weight, bias, fmt)
        self._empty_codebook(length, books)
