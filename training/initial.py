"""First weights that the transformers' papers share."""

from __future__ import annotations

from typing import Any

import torch


def xavier_linears(network: Any) -> None:
    """Xavier-uniform linear layers, the cutting into patches as one of them, and no biases, in place.

    DiT (arXiv 2212.09748, its code) and PixArt (arXiv 2310.00426, its code) start so; diffusers leaves torch's defaults in place.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    patches = network.pos_embed.proj
    torch.nn.init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
    torch.nn.init.zeros_(patches.bias)
