"""Draws with a pipeline's folder in the tool's own environment, where nothing of dq-deploy is: draw.py TOOL FOLDER OUT.npy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROMPT, SEED, STEPS, SIZE, GUIDANCE = "a cat", 1, 3, 16, 7.5


def drawn_by(pipeline: Any) -> Any:
    return pipeline(
        PROMPT, height=SIZE, width=SIZE, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np",
        generator=torch.Generator().manual_seed(SEED),
    ).images  # fmt: skip


def optimum_onnx(folder: str) -> Any:
    from optimum.onnxruntime import ORTPipelineForText2Image

    return drawn_by(ORTPipelineForText2Image.from_pretrained(folder))


def optimum_intel(folder: str) -> Any:
    from optimum.intel import OVPipelineForText2Image

    return drawn_by(OVPipelineForText2Image.from_pretrained(folder, ov_config={"INFERENCE_PRECISION_HINT": "f32"}))


def openvino_genai(folder: str) -> Any:
    import openvino
    import openvino_genai

    class Noise(openvino_genai.Generator):
        """torch's noise, so that the picture is the others'."""

        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(SEED)

        def next(self) -> float:
            return float(torch.randn(1, generator=self.generator))

        def randn_tensor(self, shape: Any) -> Any:
            return openvino.Tensor(torch.randn(list(shape), generator=self.generator).numpy())

    pipeline = openvino_genai.Text2ImagePipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32")
    drawn = pipeline.generate(PROMPT, height=SIZE, width=SIZE, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=Noise())
    return drawn.data.astype(np.float32) / 255


TOOLS = {"optimum-onnx": optimum_onnx, "optimum-intel": optimum_intel, "openvino-genai": openvino_genai}

if __name__ == "__main__":
    tool, folder, output = sys.argv[1:]
    np.save(Path(output), TOOLS[tool](folder))
