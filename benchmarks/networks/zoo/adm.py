"""The UNet of "Diffusion Models Beat GANs" (arXiv 2105.05233), as the ImageNet 64 model has it, at a third of its width.

Norms computed in float32, scale and shift from the time after the second norm, residual blocks that resize, attention over 1-D
convolutions with q, k and v in either order, and a variance learned beside the noise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..conditions import CLASSES
from ..network import Network


class GroupNorm32(nn.GroupNorm):
    """In float32 whatever comes in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized, in the input's type."""
        return super().forward(x.float()).type(x.dtype)


def timestep_embedding(timesteps: torch.Tensor, dim: int) -> torch.Tensor:
    """Cosines and sines [N, dim]."""
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half).to(timesteps.device)
    angles = timesteps[:, None].float() * freqs[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class ResBlock(nn.Module):
    """``resize``: "up" or "down" between the first activation and the first convolution, and on the skip."""

    def __init__(self, channels: int, out: int, emb: int, groups: int, resize: str = "") -> None:
        super().__init__()
        self.resize = resize
        self.in_norm, self.in_conv = GroupNorm32(groups, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out))
        self.out_norm, self.out_conv = GroupNorm32(groups, out), nn.Conv2d(out, out, 3, padding=1)
        nn.init.zeros_(self.out_conv.weight)
        self.skip: nn.Module = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)

    def _resized(self, x: torch.Tensor) -> torch.Tensor:
        if self.resize == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resize == "down" else x

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """The block."""
        h = self.in_conv(self._resized(F.silu(self.in_norm(x))))
        e = self.emb_layers(emb).type(h.dtype)
        while e.dim() < h.dim():
            e = e[..., None]
        scale, shift = torch.chunk(e, 2, dim=1)
        h = self.out_conv(F.silu(self.out_norm(h) * (1 + scale) + shift))
        out: torch.Tensor = self.skip(self._resized(x)) + h
        return out


class Attention(nn.Module):
    """Over all positions. ``new_order`` splits q, k and v before the heads; the released models split the heads first."""

    def __init__(self, channels: int, head: int, groups: int, *, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = channels // head, new_order
        self.norm = GroupNorm32(groups, channels)
        self.qkv, self.proj = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block."""
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        qkv, length, size = self.qkv(self.norm(x)), x.shape[2], c // self.heads
        if self.new_order:
            q, k, v = (part.reshape(b * self.heads, size, length) for part in qkv.chunk(3, dim=1))
        else:
            q, k, v = qkv.reshape(b * self.heads, 3 * size, length).split(size, dim=1)
        scale = 1 / math.sqrt(math.sqrt(size))
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(b, -1, length)
        out: torch.Tensor = (x + self.proj(h)).reshape(b, c, *spatial)
        return out


class ADM(nn.Module):
    """The UNet, class-conditional."""

    def __init__(self, width: int = 64, blocks: int = 1, *, new_order: bool = False) -> None:
        super().__init__()
        self.width, emb, groups, head = width, 4 * width, min(32, width // 2), min(32, width)
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label_emb = nn.Embedding(CLASSES, emb)

        def stage(channels: int, out: int, attention: bool, resize: str = "") -> nn.ModuleList:
            attend: list[nn.Module] = [Attention(out, head, groups, new_order=new_order)] if attention else []
            return nn.ModuleList([ResBlock(channels, out, emb, groups, resize), *attend])

        self.conv_in = nn.Conv2d(1, width, 3, padding=1)
        self.down, skips, channels = nn.ModuleList(), [width], width
        for level, factor in enumerate((1, 2, 2)):
            for _ in range(blocks):
                self.down.append(stage(channels, factor * width, level > 0))
                channels = factor * width
                skips.append(channels)
            if level < 2:
                self.down.append(stage(channels, channels, False, "down"))
                skips.append(channels)
        self.middle = nn.ModuleList([*stage(channels, channels, True), *stage(channels, channels, False)])
        self.up = nn.ModuleList()
        for level, factor in reversed(list(enumerate((1, 2, 2)))):
            for number in range(blocks + 1):
                layers = stage(channels + skips.pop(), factor * width, level > 0)
                channels = factor * width
                if level and number == blocks:
                    layers += stage(channels, channels, False, "up")
                self.up.append(layers)
        self.out_norm, self.conv_out = GroupNorm32(groups, channels), nn.Conv2d(channels, 2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The noise and the variance [N, 2, H, W]."""
        emb = self.time_embed(timestep_embedding(timesteps, self.width)) + self.label_emb(y)
        h = self.conv_in(x)
        skips = [h]
        for layers in self.down:
            h = _run(layers, h, emb)
            skips.append(h)
        h = _run(self.middle, h, emb)
        for layers in self.up:
            h = _run(layers, torch.cat([h, skips.pop()], dim=1), emb)
        out: torch.Tensor = self.conv_out(F.silu(self.out_norm(h)))
        return out


def _run(layers: Any, h: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
    return h


NETWORK = Network("adm", "guided-diffusion's UNet (ADM)", ADM, "noise", conditions="classes", condition="y", small={"width": 8})
make = NETWORK.make
