"""DiT (arXiv 2212.09748): adaLN-Zero, attention as timm writes it, a fixed sine-cosine position table, a learned variance."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from ..network import Network


def position_table(size: int, dim: int) -> torch.Tensor:
    """Sines and cosines of both coordinates [1, size², dim]."""
    omega = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.arange(size, dtype=torch.float64)[:, None] * omega
    one = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = one[:, None].expand(size, size, -1), one[None].expand(size, size, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, size * size, dim).float()


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scaled and shifted by one row a sample."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimestepEmbedder(nn.Module):
    """Cosines and sines, then two layers."""

    def __init__(self, dim: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """[N] → [N, dim]."""
        half = self.frequencies // 2
        freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half).to(t.device)
        angles = t[:, None].float() * freqs[None]
        out: torch.Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return out


class Attention(nn.Module):
    """One product for q, k and v."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, T, D] → [N, T, D]."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.proj(x.transpose(1, 2).reshape(b, n, c))
        return out


class Block(nn.Module):
    """adaLN-Zero."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        _zero(self.adaLN_modulation[1])

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The block."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        out: torch.Tensor = x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))
        return out


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class DiT(nn.Module):
    """DiT-S/2 by default. ``learn_sigma``: as many channels again for the variance."""

    def __init__(self, dim: int = 384, depth: int = 12, heads: int = 6, patch: int = 2, channels: int = 4, size: int = 32,
                 classes: int = 1000, *, learn_sigma: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.patch, self.out_channels = patch, channels * (2 if learn_sigma else 1)
        self.x_embedder = nn.Conv2d(channels, dim, patch, stride=patch)
        self.t_embedder, self.y_embedder = TimestepEmbedder(dim), nn.Embedding(classes + 1, dim)
        nn.init.normal_(self.y_embedder.weight, std=0.02)
        self.register_buffer("pos_embed", position_table(size // patch, dim))
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.final = nn.Linear(dim, patch * patch * self.out_channels)
        _zero(self.final_modulation[1])
        _zero(self.final)

    def _unpatchify(self, x: torch.Tensor) -> torch.Tensor:
        edge = int(x.shape[1] ** 0.5)
        x = x.reshape(x.shape[0], edge, edge, self.patch, self.patch, self.out_channels)
        x = torch.einsum("nhwpqc->nchpwq", x)
        return x.reshape(x.shape[0], self.out_channels, edge * self.patch, edge * self.patch)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The prediction, and beside it the variance."""
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c).chunk(2, dim=1)
        return self._unpatchify(self.final(modulate(self.norm_final(x), shift, scale)))


NETWORK = Network("dit", "DiT-S/2", DiT, "noise", shape=(4, 32, 32), conditions="classes", condition="y", family="transformer",
                  small={"dim": 64, "depth": 1, "heads": 2, "patch": 4, "classes": 10})  # fmt: skip
make = NETWORK.make
