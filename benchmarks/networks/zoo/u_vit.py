"""U-ViT (arXiv 2209.12152): time and class are tokens, long skips are concatenated, a convolution comes last."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..conditions import CLASSES
from ..network import Network
from .adm import timestep_embedding


class Attention(nn.Module):
    """One product for q, k and v, without a bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, L, D] → [N, L, D]."""
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).float()
        x = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).reshape(b, n, c)
        out: torch.Tensor = self.proj(x)
        return out


class Block(nn.Module):
    """``skip``: a second input is concatenated, and a layer halves the two."""

    def __init__(self, dim: int, heads: int, *, skip: bool = False) -> None:
        super().__init__()
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), Attention(dim, heads), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """The block."""
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class UViT(nn.Module):
    """Patches of 4, two further tokens."""

    def __init__(self, dim: int = 256, depth: int = 8, heads: int = 4, patch: int = 4) -> None:
        super().__init__()
        self.dim, self.patch = dim, patch
        self.patch_embed, self.label_emb = nn.Conv2d(1, dim, patch, stride=patch), nn.Embedding(CLASSES, dim)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 2 + (32 // patch) ** 2, dim))
        self.in_blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth // 2)])
        self.mid_block = Block(dim, heads)
        self.out_blocks = nn.ModuleList([Block(dim, heads, skip=True) for _ in range(depth // 2)])
        self.norm, self.decoder = nn.LayerNorm(dim), nn.Linear(dim, patch * patch)
        self.final = nn.Conv2d(1, 1, 3, padding=1)
        nn.init.zeros_(self.final.bias)  # type: ignore[arg-type]  # it has one
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The predicted noise."""
        n, _, h, w = x.shape
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([timestep_embedding(timesteps, self.dim).unsqueeze(1), x], dim=1)
        x = torch.cat([self.label_emb(y).unsqueeze(1), x], dim=1) + self.pos_embed
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        x = self.decoder(self.norm(x))[:, 2:, :]
        p = self.patch
        x = x.reshape(n, h // p, w // p, p, p, 1).permute(0, 5, 1, 3, 2, 4).reshape(n, 1, h, w)
        out: torch.Tensor = self.final(x)
        return out


NETWORK = Network("u_vit", "U-ViT, 9 layers of 256, patches of 4", UViT, "noise", conditions="classes", condition="y", family="transformer",
                  small={"dim": 32, "depth": 2, "heads": 2})  # fmt: skip
make = NETWORK.make
