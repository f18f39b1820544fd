"""An fp16 graph computes in fp32 what fp16 cannot hold, and says so."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dq_deploy.errors import EnvironmentProblem
from dq_deploy.exporters import export
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.tiny import make_checkpoint, run, snr_db


class Between(nn.Module):
    """A function of a few channels between convolutions."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.first, self.second, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.second(self.first(x) + 1e-3 * t.reshape(-1, 1, 1, 1))
        return self.last(self.function(h))


def attention(h: torch.Tensor) -> torch.Tensor:
    """Masked; its logits are thousands of times what fp16 holds."""
    tokens = h.flatten(2).transpose(1, 2)
    scores = tokens @ tokens.transpose(1, 2) * 1e5
    mask = torch.zeros(64, 64).masked_fill(torch.ones(64, 64).triu(1) > 0, torch.finfo(torch.float32).min)
    return (torch.softmax(scores + mask, dim=-1) @ tokens).transpose(1, 2).reshape(h.shape)


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a residual stream": lambda h: nn.functional.layer_norm(1e5 * h, (8,)) + 1e5 * h * 1e-5,
    "a variance": lambda h: (3e3 * h) * torch.rsqrt((3e3 * h).pow(2).mean(1, keepdim=True) + 1e-6),
    "a small variance": lambda h: (1e-5 * h) * torch.rsqrt((1e-5 * h).pow(2).mean(1, keepdim=True) + 1e-12),
    "a cube": lambda h: nn.functional.gelu(100 * h, approximate="tanh"),
    "an epsilon": lambda h: torch.relu(h - 0.5) * torch.rsqrt(torch.relu(h - 0.5).pow(2).mean(1, keepdim=True) + 1e-10),
    "a small scale": lambda h: h + (h * 1e-9) * 1e9,
    "a large constant": lambda h: h + (h * 1e6).tanh(),
    "logits": attention,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_fp16_cannot_hold_comes_out_right(name: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(Between(FUNCTIONS[name]), tmp_path / "c", max_float_share=1, steps=2)
    made = export(checkpoint.artifact, tmp_path / "b", target="qdq")
    assert made.manifest.details["dtype"] == "fp16"
    assert made.manifest.details["kept_fp32"]
    reference = checkpoint.reference()
    x, t = reference.samples[0], reference.timesteps[:1].repeat(len(reference.samples[0]))
    with torch.no_grad():
        assert snr_db(checkpoint.model(x, t), run(made, x, t)) > 35


def test_what_fits_is_fp16(plain_checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = export(plain_checkpoint.artifact, tmp_path / "b", target="qdq")
    assert "kept_fp32" not in made.manifest.details


def test_without_onnxruntime_an_fp16_export_says_what_else_there_is(
    plain_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentProblem, match="onnxruntime is not installed: an fp16 export runs the graph") as caught:
        export(plain_checkpoint.artifact, tmp_path / "b", target="qdq")
    assert "--dtype fp32 or --dtype bf16" in (caught.value.hint or "")
