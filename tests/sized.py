"""One bundle for three sizes, of a tiny Stable Diffusion. Read it, do not change it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from tests.shared import made_once
from tests.tiny import FAST
from tests.tiny_pipelines import tiny_stable_diffusion

SIZES = ((16, 16), (24, 16), (32, 32))
"""Heights and widths in pixels; a latent is 2 of them."""
BETWEEN = (24, 24)
"""What quantize chooses between them: 12 latents on each edge."""


@dataclass(frozen=True)
class Sized:
    """Folders of the pipeline and its artefacts."""

    pipeline: Path
    checkpoint: Path
    qdq: Path
    onnxruntime: Path


def sized_pipeline() -> Any:
    """Two levels with down- and upsampling, cross-attention in the first: sizes of latents are even."""
    return tiny_stable_diffusion(
        block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D")
    )


@pytest.fixture(scope="session")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Sized:
    """W8A8, calibrated at SIZES, nothing trained; bundles in fp32."""

    def make(root: Path) -> None:
        sized_pipeline().save_pretrained(root / "pipeline")
        options = {**FAST, "calibration_samples": 6, "reference_samples": 4, "dilation": "none"}
        checkpoint = quantize(root / "pipeline", root / "checkpoint", prompts=["a cat", "dogs"], sizes=SIZES, **options)
        export(checkpoint, root / "qdq", target="qdq", dtype="fp32")
        export(checkpoint, root / "onnxruntime", target="onnxruntime", convolutions="integer")

    root = made_once(tmp_path_factory, "sized", make)
    return Sized(root / "pipeline", root / "checkpoint", root / "qdq", root / "onnxruntime")
