"""ViDiT-Q (arXiv 2406.02540): a scale for each token, SmoothQuant's factors and a rotation in front of it, nothing trained."""

from __future__ import annotations

from .method import Method

VIDIT_Q = Method(
    name="vidit-q",
    title="ViDiT-Q",
    paper="arXiv 2406.02540",
    summary="a scale for each token, SmoothQuant's factors with α = 0.11 and a rotation, nearest codes of whole ranges, nothing trained",
    options={
        "activations": "per-token",
        "dilation": "smoothquant",
        "smoothquant_alpha": 0.11,
        "rotation": "256",
        "initial_range": "minmax",
        "rounding": "nearest",
        "iterations": 0,
        "output_bias": False,
    },
    limits=(
        "A token has a zero-point where its values lean to one side, which rotated ones hardly do; in the released code every one has.",
        "There is one set of factors; the paper has one with weights of their own for each range of timesteps.",
        "Factors come behind the rotation, by blocks of 256 channels at the most; in the paper before it, and it is of all channels.",
        "Every layer has the preset's bits; --auto-bits with --sensitivity decoupled chooses them by groups of layers.",
        "Convolutions are quantized too, with tables by timestep: the paper has none.",
    ),
)
