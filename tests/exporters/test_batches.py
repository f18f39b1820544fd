"""Inputs whose batches nothing in the model joins: a graph has one batch all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import torch
from torch import nn

from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.exporters.skeleton import to_onnx
from dq_deploy.quantization.graph.capture import capture


class Masked(nn.Module):
    """Attention to text under a mask for each head, as PixArt has it: the mask's batch is divided by the sample's."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(6, 8)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key = (x.unflatten(2, (2, 4)).transpose(1, 2) for x in (self.query(sample), self.key(text)))
        bias = mask.unsqueeze(1).repeat_interleave(2, dim=0).view(sample.shape[0], 2, -1, mask.shape[-1])
        attended = nn.functional.scaled_dot_product_attention(query, key, key, attn_mask=bias)
        return attended.transpose(1, 2).flatten(2) + timestep[:, None, None]


def values(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    shapes = {"sample": (batch, 5, 8), "timestep": (batch,), "text": (batch, 3, 6), "mask": (batch, 3)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_a_mask_has_the_batch_of_the_sample(tmp_path: Path) -> None:
    model = Masked().eval()
    graph = capture(model, values(2))
    placeholders = [node.meta["val"].shape[0] for node in graph.graph.nodes if node.op == "placeholder"]
    assert len({str(size) for size in placeholders}) == 1
    onnx.save(onnx_ir.to_proto(to_onnx(graph, values(2), {})), tmp_path / "model.onnx")
    runner = OnnxRuntimeRunner(tmp_path / "model.onnx")
    for batch in (1, 3):
        inputs = values(batch)
        with torch.no_grad():
            expected = model(**inputs).numpy()
        np.testing.assert_allclose(runner.run({name: value.numpy() for name, value in inputs.items()}), expected, atol=1e-5)
