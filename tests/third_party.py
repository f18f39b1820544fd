"""Denoisers as people write them without diffusers: two plain modules called ``(x, t)``, in the two dialects that most repositories speak.

``AdmUNet`` has the traits of guided-diffusion and its descendants: 1-d convolutions for q, k and v, heads folded into the batch, einsum,
time embeddings that scale and shift, up- and downsampling inside residual blocks, skips kept in a list.
``LinearAttentionUNet`` has those of denoising-diffusion-pytorch: linear attention with memory, weight-standardized convolutions,
normalization by ``F.normalize`` with a learned gain, space-to-depth downsampling, activations changed in place.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


def sinusoids(t: torch.Tensor, size: int) -> torch.Tensor:
    """Features [N, size] of timesteps [N]."""
    rates = torch.exp(-math.log(10000) * torch.arange(size // 2, dtype=torch.float32, device=t.device) / (size // 2))
    angles = t[:, None].float() * rates[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class FoldedAttention(nn.Module):
    """Self-attention over pixels, the heads folded into the batch."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(4, channels)
        self.qkv, self.proj = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, *spatial = x.shape
        x = x.reshape(n, c, -1)
        qkv = self.qkv(self.norm(x))
        size = c // self.heads
        q, k, v = qkv.reshape(n * self.heads, 3 * size, -1).split(size, dim=1)
        scale = size**-0.25  # on both factors, as half precision likes it
        scores = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weights = torch.softmax(scores.float(), dim=-1).type(scores.dtype)
        out = torch.einsum("bts,bcs->bct", weights, v).reshape(n, -1, x.shape[-1])
        return (x + self.proj(out)).reshape(n, c, *spatial)


class ScaleShiftBlock(nn.Module):
    """Residual block; ``resample`` is 0.5, 1 or 2, applied to both paths."""

    def __init__(self, channels: int, out: int, embedding: int, resample: float = 1) -> None:
        super().__init__()
        self.resample = resample
        self.enter = nn.Sequential(nn.GroupNorm(4, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out))
        self.norm, self.leave = nn.GroupNorm(4, out), nn.Sequential(nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def resampled(self, x: torch.Tensor) -> torch.Tensor:
        if self.resample == 1:
            return x
        return F.avg_pool2d(x, 2) if self.resample < 1 else F.interpolate(x, scale_factor=2, mode="nearest")

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.enter[-1](self.resampled(self.enter[:-1](x)))
        embedded = self.embed(embedding).type(h.dtype)
        while len(embedded.shape) < len(h.shape):
            embedded = embedded[..., None]
        scale, shift = torch.chunk(embedded, 2, dim=1)
        h = self.leave(self.norm(h) * (1 + scale) + shift)
        return self.skip(self.resampled(x)) + h


class AdmUNet(nn.Module):
    """See the module."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width, embedding = width, 2 * width
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        block = ScaleShiftBlock
        self.input_blocks = nn.ModuleList([
            nn.ModuleList([nn.Conv2d(1, width, 3, padding=1)]),
            nn.ModuleList([block(width, width, embedding, 0.5)]),
            nn.ModuleList([block(width, 2 * width, embedding), FoldedAttention(2 * width, heads)]),
        ])  # fmt: skip
        self.middle_block = nn.ModuleList([FoldedAttention(2 * width, heads), block(2 * width, 2 * width, embedding)])
        self.output_blocks = nn.ModuleList([
            nn.ModuleList([block(4 * width, 2 * width, embedding)]),
            nn.ModuleList([block(3 * width, 2 * width, embedding), block(2 * width, 2 * width, embedding, 2)]),
            nn.ModuleList([block(3 * width, width, embedding)]),
        ])  # fmt: skip
        self.out = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    @staticmethod
    def through(modules: nn.ModuleList, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        for module in modules:
            h = module(h, embedding) if isinstance(module, ScaleShiftBlock) else module(h)
        return h

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        embedding = self.time_embed(sinusoids(timesteps, self.width))
        h, skips = x.type(torch.float32), []
        for modules in self.input_blocks:
            h = self.through(modules, h, embedding)
            skips.append(h)
        h = self.through(self.middle_block, h, embedding)
        for modules in self.output_blocks:
            h = self.through(modules, torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(h.type(x.dtype))


class StandardizedConv2d(nn.Conv2d):
    """Weights of mean 0 and variance 1 for each output channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        variance = self.weight.var(dim=(1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - mean) * (variance + 1e-5).rsqrt(), self.bias, self.stride, self.padding)


class GainNorm(nn.Module):
    """Unit length over the channels, times a gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x, dim=1) * self.gain * x.shape[1] ** 0.5


class LinearAttention(nn.Module):
    """Attention whose cost grows with the pixels and not with their square; keys and values have learned companions."""

    def __init__(self, channels: int, heads: int = 2, size: int = 8) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.norm, self.memory = GainNorm(channels), nn.Parameter(torch.randn(2, heads, size, 4))
        self.to_qkv = nn.Conv2d(channels, 3 * heads * size, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * size, channels, 1), GainNorm(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        q, k, v = (p.unflatten(1, (self.heads, self.size)).flatten(3) for p in self.to_qkv(self.norm(x)).chunk(3, dim=1))
        extra_k, extra_v = (m.expand(n, -1, -1, -1) for m in self.memory)
        k, v = torch.cat([extra_k, k], dim=-1), torch.cat([extra_v, v], dim=-1)
        q, k = q.softmax(dim=-2) * self.size**-0.5, k.softmax(dim=-1)
        context = torch.einsum("b h d n, b h e n -> b h d e", k, v)
        out = torch.einsum("b h d e, b h d n -> b h e n", context, q)
        return self.to_out(out.reshape(n, -1, height, width))


class FullAttention(nn.Module):
    """Softmax attention over pixels by ``@``, the output projection a bare parameter over all tokens of all samples at once."""

    def __init__(self, channels: int, heads: int = 2, size: int = 8) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.norm, self.to_qkv = GainNorm(channels), nn.Conv2d(channels, 3 * heads * size, 1, bias=False)
        self.out = nn.Parameter(torch.randn(heads * size, channels) / (heads * size) ** 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, height, width = x.shape
        parts = self.to_qkv(self.norm(x)).chunk(3, dim=1)
        q, k, v = (p.unflatten(1, (self.heads, self.size)).flatten(3).transpose(-1, -2) for p in parts)
        weights = torch.einsum("... i d, ... j d -> ... i j", q * self.size**-0.5, k).softmax(dim=-1)
        tokens = (weights @ v).transpose(1, 2).reshape(n * height * width, -1) @ self.out
        return tokens.reshape(n, height, width, c).permute(0, 3, 1, 2)


class ShiftedBlock(nn.Module):
    """Two standardized convolutions; the time embedding scales and shifts the first one's output."""

    def __init__(self, channels: int, out: int, embedding: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out))
        self.first, self.second = StandardizedConv2d(channels, out, 3, padding=1), StandardizedConv2d(out, out, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, out), nn.GroupNorm(4, out)])
        self.act = nn.SiLU(inplace=True)
        self.residual = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.mlp(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norms[0](self.first(x))
        h = self.act(h * (scale + 1) + shift)
        h = self.act(self.norms[1](self.second(h)))
        h += self.residual(x)
        return h


class SpaceToDepth(nn.Module):
    """Pixels of 2×2 as channels, then mixed."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4 * channels, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, height, width = x.shape
        x = x.view(n, c, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return self.mix(x.reshape(n, 4 * c, height // 2, width // 2))


class LinearAttentionUNet(nn.Module):
    """See the module."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width, embedding = width, 4 * width
        self.init_conv = nn.Conv2d(1, width, 7, padding=3)
        self.time_mlp = nn.Sequential(nn.Linear(width, embedding), nn.GELU(), nn.Linear(embedding, embedding))
        self.downs = nn.ModuleList([
            nn.ModuleList([ShiftedBlock(width, width, embedding), LinearAttention(width), SpaceToDepth(width, 2 * width)]),
        ])  # fmt: skip
        self.mid_block1, self.mid_attn = ShiftedBlock(2 * width, 2 * width, embedding), FullAttention(2 * width)
        self.mid_block2 = ShiftedBlock(2 * width, 2 * width, embedding)
        self.ups = nn.ModuleList([
            nn.ModuleList([nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(2 * width, width, 3, padding=1)),
                           ShiftedBlock(2 * width, width, embedding), LinearAttention(width)]),
        ])  # fmt: skip
        self.final_res_block, self.final_conv = ShiftedBlock(2 * width, width, embedding), nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        embedding = self.time_mlp(sinusoids(time, self.width))
        x = self.init_conv(x)
        start, skips = x.clone(), []
        for block, attention, down in self.downs:
            x = block(x, embedding)
            x = attention(x) + x
            skips.append(x)
            x = down(x)
        x = self.mid_block1(x, embedding)
        x = self.mid_attn(x) + x
        x = self.mid_block2(x, embedding)
        for up, block, attention in self.ups:
            x = block(torch.cat((up(x), skips.pop()), dim=1), embedding)
            x = attention(x) + x
        return self.final_conv(self.final_res_block(torch.cat((x, start), dim=1), embedding))
