"""VQDM (arXiv 2409.00492): weights as sums of codewords, which are trained while their codes stay."""

from __future__ import annotations

from .method import Method

VQDM = Method(
    name="vqdm",
    title="VQDM",
    paper="arXiv 2409.00492",
    summary="weights are sums of codewords (3 bits a weight), fitted to the layers' inputs; codewords and scales are distilled, codes stay",
    options={"codebook": {"length": 8, "books": 3}, "dilation": "none", "activations": "per-timestep", "judged_samples": 0},
    limits=(
        "Codewords are integers and activations have 8 bits, so that products are INT8 ones; in the paper both are float.",
        "Codewords are trained block by block; in the paper by the error of the network's output.",
        "Every layer for which it saves bytes is made of codewords, the timestep's too; in the paper those of the network's blocks.",
    ),
)
