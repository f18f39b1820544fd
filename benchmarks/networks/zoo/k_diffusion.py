"""k-diffusion's first image model: AdaGN after a mapping network, attention in 2-D convolutions, resampling by full convolutions whose
weights are written at each call.
"""  # noqa: D205  one sentence

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from ..network import Network

_KERNEL = (1 / 8, 3 / 8, 3 / 8, 1 / 8)


class AdaGN(nn.Module):
    """Group normalization without factors of its own: the mapped noise level has them."""

    def __init__(self, features: int, channels: int, group: int) -> None:
        super().__init__()
        self.groups = max(1, channels // group)
        self.mapper = nn.Linear(features, 2 * channels)
        nn.init.zeros_(self.mapper.weight)
        nn.init.zeros_(self.mapper.bias)

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """Normalized, scaled, shifted."""
        weight, bias = self.mapper(cond).chunk(2, dim=-1)
        x = F.group_norm(x, self.groups, eps=1e-5)
        return torch.addcmul(bias[..., None, None], x, weight[..., None, None] + 1)


class ResConv(nn.Module):
    """Two convolutions, and a 1×1 on the skip where the channels change."""

    def __init__(self, features: int, c_in: int, c_mid: int, c_out: int, group: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = AdaGN(features, c_in, group), nn.Conv2d(c_in, c_mid, 3, padding=1)
        self.norm2, self.conv2 = AdaGN(features, c_mid, group), nn.Conv2d(c_mid, c_out, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]
        self.skip: nn.Module = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """The block."""
        h = self.conv1(F.gelu(self.norm1(x, cond)))
        h = self.conv2(F.gelu(self.norm2(h, cond)))
        out: torch.Tensor = h + self.skip(x)
        return out


class SelfAttention(nn.Module):
    """q, k and v by a 1×1 convolution, heads first."""

    def __init__(self, features: int, channels: int, head: int, group: int) -> None:
        super().__init__()
        self.heads, self.norm = max(1, channels // head), AdaGN(features, channels, group)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """The block."""
        n, c, h, w = x.shape
        qkv = self.qkv(self.norm(x, cond)).view([n, 3 * self.heads, c // self.heads, h * w]).transpose(2, 3)
        q, k, v = qkv.chunk(3, dim=1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).contiguous().view([n, c, h, w])
        out: torch.Tensor = x + self.out(y)
        return out


class Resample(nn.Module):
    """A linear filter on each channel, as one convolution over all of them."""

    def __init__(self, *, up: bool) -> None:
        super().__init__()
        self.up = up
        kernel = torch.tensor([_KERNEL]) * (2 if up else 1)
        self.register_buffer("kernel", kernel.T @ kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice or half the size."""
        assert isinstance(self.kernel, torch.Tensor)
        x = F.pad(x, (1,) * 4, "reflect")
        weight = x.new_zeros([x.shape[1], x.shape[1], 4, 4])
        index = torch.arange(x.shape[1], device=x.device)
        weight[index, index] = self.kernel.to(weight)
        return F.conv_transpose2d(x, weight, stride=2, padding=3) if self.up else F.conv2d(x, weight, stride=2)


class KDiffusion(nn.Module):
    """The inner model of Karras' preconditioning: called with c_in·x and c_noise = ln(σ)/4, which diffusers' EDM schedulers give."""

    def __init__(self, channels: tuple[int, ...] = (64, 128, 192), depths: tuple[int, ...] = (1, 2, 2), features: int = 256,
                 group: int = 32, head: int = 64) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("fourier", torch.randn(features // 2, 1))
        self.mapping = nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.Linear(features, features), nn.GELU())
        self.proj_in, self.proj_out = nn.Conv2d(1, channels[0], 1), nn.Conv2d(channels[0], 1, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)  # type: ignore[arg-type]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()

        def stage(depth: int, c_in: int, c_mid: int, c_out: int, attention: bool) -> list[nn.Module]:
            layers: list[nn.Module] = []
            for number in range(depth):
                out = c_mid if number < depth - 1 else c_out
                layers.append(ResConv(features, c_in if number == 0 else c_mid, c_mid, out, group))
                layers += [SelfAttention(features, out, head, group)] if attention else []
            return layers

        for level, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            before = channels[max(0, level - 1)]
            self.down.append(nn.ModuleList([*([Resample(up=False)] if level else []), *stage(depth, before, width, width, level > 0)]))
        for level, (width, depth) in reversed(list(enumerate(zip(channels, depths, strict=True)))):
            c_in = 2 * width if level < len(channels) - 1 else width
            layers = stage(depth, c_in, width, channels[max(0, level - 1)], level > 0)
            self.up.append(nn.ModuleList([*layers, *([Resample(up=True)] if level else [])]))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        """The inner model's output [N, 1, H, W]."""
        assert isinstance(self.fourier, torch.Tensor)
        f = 2 * math.pi * c_noise[:, None] @ self.fourier.T
        cond = self.mapping(torch.cat([f.cos(), f.sin()], dim=-1))
        x = self.proj_in(x)
        skips = []
        for layers in self.down:
            x = _run(layers, x, cond)
            skips.append(x)
        for number, layers in enumerate(self.up):
            skip = skips.pop()
            x = _run(layers, torch.cat([x, skip], dim=1) if number else x, cond)
        out: torch.Tensor = self.proj_out(x)
        return out


def _run(layers: nn.Module, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
    for layer in layers.children():
        x = layer(x) if isinstance(layer, Resample) else layer(x, cond)
    return x


NETWORK = Network("k_diffusion", "k-diffusion's image model (v1)", KDiffusion, "edm",
                  small={"channels": (8, 16), "depths": (1, 1), "features": 16, "group": 4, "head": 8})  # fmt: skip
make = NETWORK.make
