"""MatGPTQ (arXiv 2602.03537): codes of 8 bits that hold those of fewer, rounded for all of them."""

from __future__ import annotations

from .method import Method

MATGPTQ = Method(
    name="matgptq",
    title="MatGPTQ",
    paper="arXiv 2602.03537",
    summary="weights of 8, 4 and 3 bits in one checkpoint, rounded for all three and not trained; export --weight-bits takes one",
    options={"matryoshka": (8, 4, 3), "rounding": "gptq", "iterations": 0, "dilation": "none", "activations": "per-timestep"},
    limits=(
        "Each width carries on its own error, where the paper carries on their mean; passes of coordinate descent follow.",
        "A weight's scale is for an output channel, the paper's for a group of 128 inputs: TensorRT refuses blocks beside integers.",
        "Activations are quantized; the paper leaves them in float.",
        "A width is chosen at export: there is no kernel that slices while it multiplies.",
    ),
)
