"""Tiny diffusers pipelines with random weights: a class-conditional transformer, and text pipelines with a tokenizer of their own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiTTransformer2DModel


def randomized(model: torch.nn.Module, std: float = 0.15) -> Any:
    """Random weights where an architecture starts with zeros (a fresh DiT ignores its classes and its timestep)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


def tiny_dit(**options: Any) -> Any:
    """A pixel transformer: one channel of 8×8, 5 classes and the null class, predicting noise and variance."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 1,
        "out_channels": 2,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 5,
        "norm_num_groups": 4,
    }
    return randomized(DiTTransformer2DModel(**{**config, **options}))
