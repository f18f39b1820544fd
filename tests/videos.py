"""A small network of videos in the ways in which such networks are written: frames in the batch, and convolutions over time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

FRAMES, SHAPE = 3, (2, 3, 6, 8)


class VideoUNet(nn.Module):
    """Noise of a video [N, 2, 3, 6, 8], of which ``between`` reads the first frames of all samples before the second ones."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(2, width, 3, padding=1), nn.Conv2d(width, 2, 3, padding=1)
        self.norm, self.time = nn.GroupNorm(4, width), nn.Linear(1, width)
        self.frame, self.between = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.over_time, self.spatial = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0)), nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """See the class."""
        embedding = self.time(timestep[:, None] / 1000).repeat_interleave(FRAMES, dim=0)[:, :, None, None]
        h = self.first(x.transpose(1, 2).flatten(0, 1)) + embedding  # [N·F, C, H, W]
        h = h + self.frame(F.silu(self.norm(h)))
        video = h.unflatten(0, (-1, FRAMES)).transpose(1, 2)  # [N, C, F, H, W]
        video = video + self.over_time(F.silu(video))
        video = video + self.spatial(F.silu(video))
        apart = self.between(F.silu(torch.cat(video.unbind(2))))  # [F·N, C, H, W]
        h = apart.reshape(FRAMES, x.shape[0], *h.shape[1:]).transpose(0, 1).flatten(0, 1) + h
        return self.last(h).unflatten(0, (-1, FRAMES)).transpose(1, 2)
