"""Networks that take their batch as a list of samples, which binds a captured graph to its length, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

_KNOWN = ("ZImageTransformer2DModel",)


def takes_sample_list(module: nn.Module) -> bool:
    """Whether a network is known to take its batch as a list of samples, and its conditions as lists too."""
    return type(module).__name__ in _KNOWN


def whole_batch_forward(module: nn.Module, tensors: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> torch.Tensor | None:
    """The output [N, ...] of a network whose forward takes lists, by its own layers, or None for one that is not known.

    Capture compares it with the network itself.
    """
    if takes_sample_list(module) and set(tensors) == {"x", "timestep", "cap_feats"}:
        return _z_image(module, tensors["x"], tensors["timestep"], tensors["cap_feats"], options["patch_size"], options["f_patch_size"])
    return None


def _z_image(model: Any, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, patch: int, frames: int) -> torch.Tensor:
    """Z-Image's forward for samples x [N, C, F, H, W] of one size and texts [N, L, D] of one length."""
    key = f"{patch}-{frames}"
    moment = model.t_embedder(t * model.t_scale).type_as(x)
    _, channels, depth, height, width = x.shape
    grid = (depth // frames, height // patch, width // patch)
    tokens = x.reshape(-1, channels, grid[0], frames, grid[1], patch, grid[2], patch).permute(0, 2, 4, 6, 3, 5, 7, 1)
    tokens = tokens.reshape(-1, grid[0] * grid[1] * grid[2], frames * patch * patch * channels)
    count, length = tokens.shape[1], text.shape[1]
    whole = length + (-length) % 32
    texts, text_places = _padded_text(model, model.cap_embedder(text), whole)
    hidden, places = _padded(model, model.all_x_embedder[key](tokens), model.x_pad_token, grid, (whole + 1, 0, 0))
    for layer in model.noise_refiner:
        hidden = layer(hidden, None, places, moment, None, None, None)
    for layer in model.context_refiner:
        texts = layer(texts, None, text_places)
    hidden, places = torch.cat([hidden, texts], dim=1), torch.cat([places, text_places], dim=1)
    for layer in model.layers:
        hidden = layer(hidden, None, places, moment, None, None, None)
    hidden = model.all_final_layer[key](hidden, c=moment)[:, :count]
    parts = hidden.reshape(-1, *grid, frames, patch, patch, model.out_channels).permute(0, 7, 1, 4, 2, 5, 3, 6)
    output: torch.Tensor = parts.reshape(-1, model.out_channels, depth, height, width)
    return output


def _padded_text(model: Any, tokens: torch.Tensor, whole: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``_padded`` for a text [N, L, D], with L free: ``whole`` tokens at places 1, 2, … of the first axis."""
    count, length, width = tokens.shape
    pad = model.cap_pad_token.reshape(1, 1, width).expand(count, whole - length, width)
    first = torch.arange(1, whole + 1, device=tokens.device)
    rotations = model.rope_embedder(torch.stack([first, torch.zeros_like(first), torch.zeros_like(first)], dim=-1))
    return torch.cat([tokens, pad], dim=1), rotations[None].expand(count, *rotations.shape)


def _padded(
    model: Any, tokens: torch.Tensor, pad: torch.Tensor, grid: tuple[int, int, int], start: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [N, L, D] filled up as the model does, and the rotations of their places [N, L', ...]."""
    count, width = tokens.shape[1:]
    _, places, mask, _, _ = model._pad_with_ids(torch.zeros(count, 1), grid, start, tokens.device)
    more = len(mask) - count
    if more:
        tokens = torch.cat([tokens, pad.reshape(1, 1, width).expand(tokens.shape[0], more, width)], dim=1)
    rotations = model.rope_embedder(places.long())[: tokens.shape[1]]
    return tokens, rotations[None].expand(tokens.shape[0], *rotations.shape)
