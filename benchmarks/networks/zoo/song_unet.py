"""NCSN++ as EDM (arXiv 2206.00364) writes it: one convolution class with resampling filters, sums scaled by √½, Fourier features of the
noise level, and a pyramid of the input that is added at each resolution.
"""  # noqa: D205  one sentence

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from ..network import Network

_SCALE = math.sqrt(0.5)


class Linear(nn.Module):
    """With the weights' own initialization."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(_xavier(outputs, inputs, 1)[:, :, 0, 0]), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, inputs] → [N, outputs]."""
        return x @ self.weight.to(x.dtype).t() + self.bias.to(x.dtype)


class Conv2d(nn.Module):
    """A convolution that may resize first, by a small filter on each channel; ``kernel`` 0 only resizes."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, resize: str = "", taps: tuple[int, ...] = (1, 3, 3, 1), gain: float = 1.0
    ) -> None:
        super().__init__()
        self.resize, self.inputs = resize, inputs
        self.weight = nn.Parameter(gain * _xavier(outputs, inputs, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(outputs)) if kernel else None
        filter_ = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("filter", filter_.outer(filter_)[None, None] / filter_.sum().square() if resize else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Resized, multiplied, shifted."""
        if self.resize:
            assert isinstance(self.filter, torch.Tensor)
            taps = self.filter.to(x.dtype)
            pad, taps = (taps.shape[-1] - 1) // 2, taps.tile([self.inputs, 1, 1, 1])
            if self.resize == "up":
                x = F.conv_transpose2d(x, taps.mul(4), groups=self.inputs, stride=2, padding=pad)
            else:
                x = F.conv2d(x, taps, groups=self.inputs, stride=2, padding=pad)
        if self.weight is not None and self.bias is not None:
            x = F.conv2d(x, self.weight.to(x.dtype), padding=self.weight.shape[-1] // 2)
            x = x.add_(self.bias.to(x.dtype).reshape(1, -1, 1, 1))
        return x


def _xavier(outputs: int, inputs: int, kernel: int) -> torch.Tensor:
    bound = math.sqrt(6 / ((inputs + outputs) * kernel * kernel))
    return bound * (2 * torch.rand(outputs, inputs, kernel, kernel) - 1)


class Norm(nn.Module):
    """Groups of at least four channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = min(32, channels // 4)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized."""
        return F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), eps=1e-6)


class Block(nn.Module):
    """Two convolutions, the noise level added between them, and one head of attention where there is any."""

    def __init__(self, channels: int, out: int, emb: int, resize: str = "", *, attention: bool = False) -> None:
        super().__init__()
        self.norm0, self.conv0 = Norm(channels), Conv2d(channels, out, 3, resize)
        self.affine = Linear(emb, out)
        self.norm1, self.conv1 = Norm(out), Conv2d(out, out, 3, gain=1e-5)
        self.skip = Conv2d(channels, out, 1, resize) if out != channels or resize else None
        self.attention = attention
        if attention:
            self.norm2, self.qkv, self.proj = Norm(out), Conv2d(out, 3 * out, 1, gain=math.sqrt(0.2)), Conv2d(out, out, 1, gain=1e-5)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """The block."""
        orig = x
        x = self.conv0(F.silu(self.norm0(x)))
        x = F.silu(self.norm1(x.add_(self.affine(emb)[:, :, None, None])))
        x = self.conv1(x)
        x = x.add_(self.skip(orig) if self.skip is not None else orig) * _SCALE
        if self.attention:
            q, k, v = self.qkv(self.norm2(x)).reshape(x.shape[0], x.shape[1], 3, -1).unbind(2)
            weight = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(k.shape[1])).softmax(dim=2)
            a = torch.einsum("nqk,nck->ncq", weight, v)
            x = self.proj(a.reshape(*x.shape)).add_(x) * _SCALE
        return x


class SongUNet(nn.Module):
    """F of EDM's preconditioning: called with c_in·x and c_noise = ln(σ)/4, which diffusers' EDM schedulers give."""

    def __init__(self, width: int = 64, blocks: int = 1) -> None:
        super().__init__()
        emb, factors = 4 * width, (1, 2, 2)
        self.register_buffer("freqs", torch.randn(width) * 16)
        self.map0, self.map1 = Linear(2 * width, emb), Linear(emb, emb)
        self.enc, self.pyramid, self.dec = nn.ModuleList([Conv2d(1, width, 3)]), nn.ModuleList(), nn.ModuleList()
        channels, auxiliary, skips = width, 1, [width]
        for level, factor in enumerate(factors):
            if level:
                self.enc.append(Block(channels, channels, emb, "down"))
                self.pyramid.append(Conv2d(auxiliary, channels, 3, "down"))
                auxiliary = channels
                skips.append(channels)
            for _ in range(blocks):
                self.enc.append(Block(channels, factor * width, emb, attention=level == 1))
                channels = factor * width
                skips.append(channels)
        self.concatenates = []
        for level, factor in reversed(list(enumerate(factors))):
            first = [Block(channels, channels, emb, attention=True), Block(channels, channels, emb)]
            self.dec += first if level == len(factors) - 1 else [Block(channels, channels, emb, "up")]
            self.concatenates += [False] * (2 if level == len(factors) - 1 else 1) + [True] * (blocks + 1)
            for number in range(blocks + 1):
                self.dec.append(Block(channels + skips.pop(), factor * width, emb, attention=number == blocks and level == 1))
                channels = factor * width
        self.out_norm, self.out_conv = Norm(channels), Conv2d(channels, 1, 3, gain=1e-5)

    def forward(self, x: torch.Tensor, noise_labels: torch.Tensor) -> torch.Tensor:
        """F [N, 1, H, W]."""
        assert isinstance(self.freqs, torch.Tensor)
        emb = noise_labels.ger((2 * math.pi * self.freqs).to(noise_labels.dtype))
        emb = torch.cat([emb.cos(), emb.sin()], dim=1)
        emb = emb.reshape(emb.shape[0], 2, -1).flip(1).reshape(*emb.shape)
        emb = F.silu(self.map1(F.silu(self.map0(emb))))
        skips, aux, pyramid = [], x, iter(self.pyramid)
        for block in self.enc:
            if isinstance(block, Block):
                x = block(x, emb)
                if block.conv0.resize:
                    x = aux = (x + next(pyramid)(aux)) * _SCALE
            else:
                x = block(x)
            skips.append(x)
        for block, concatenates in zip(self.dec, self.concatenates, strict=True):
            x = block(torch.cat([x, skips.pop()], dim=1) if concatenates else x, emb)
        out: torch.Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return out


NETWORK = Network("song_unet", "EDM's SongUNet (NCSN++)", SongUNet, "edm", small={"width": 8, "blocks": 1})
make = NETWORK.make
