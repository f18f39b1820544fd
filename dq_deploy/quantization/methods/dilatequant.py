"""DilateQuant (arXiv 2409.14307): the default."""

from __future__ import annotations

from .method import Method

DILATEQUANT = Method(
    name="dilatequant",
    title="DilateQuant",
    paper="arXiv 2409.14307",
    summary="weight dilation, a scale and zero-point for each timestep, blocks distilled one after the other",
    limits=(
        "--dilation auto chooses by measured output error; --dilation asymmetric is the paper's own rule.",
        "Weights are symmetric, as TensorRT takes no others.",
    ),
)
