"""Complex numbers in a model: rotary embeddings, and what else is done to them, through the capture, the export and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch import nn

from dq_deploy.errors import ArtifactError
from dq_deploy.exporters import export
from dq_deploy.quantization.graph.capture import capture
from tests.tiny import WHOLE, make_checkpoint, run, snr_db

HEADS, TOKENS, WIDTH = 2, 8, 8
Rule = Callable[["Rotated", torch.Tensor], torch.Tensor]


class Rotated(nn.Module):
    """Tokens [N, 8, 16] between two layers; in the middle heads [N, 8, 2, 8] that a rule with complex numbers changes."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rule = rule
        self.first, self.middle, self.last = (nn.Linear(HEADS * WIDTH, HEADS * WIDTH) for _ in range(3))
        angles = torch.arange(TOKENS)[:, None] * torch.logspace(0, -2, WIDTH // 2)
        self.register_buffer("angles", angles)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        heads = self.middle(self.first(x) + 1e-3 * t[:, None, None]).unflatten(2, (HEADS, WIDTH))
        return self.last(self.rule(self, heads).reshape(x.shape))


def pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))


def back(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x).flatten(-2)


RULES: dict[str, Rule] = {
    "Qwen-Image's": lambda m, x: apply_rotary_emb_qwen(x, m.turns, use_real=False),
    "made on the way": lambda m, x: back(pairs(x) * torch.polar(torch.ones_like(m.angles), m.angles)[:, None]),
    "from parts": lambda m, x: back(torch.complex(x[..., ::2], x[..., 1::2]) * m.turns[:, None]),
    "conjugated": lambda m, x: back((pairs(x) * m.turns[:, None].conj()).conj().resolve_conj()),
    "divided": lambda m, x: back(pairs(x) / (2 * m.turns[:, None]) / 3),
    "by an imaginary number": lambda _, x: back(pairs(x) * 1j + pairs(x) * (2 - 0.5j)),
    "by real ones": lambda m, x: back(pairs(x) * m.angles[:, None] + 2 * pairs(x)),
    "added to": lambda m, x: back(pairs(x) + m.angles[:, None] - (pairs(x) - 1.5)),
    "in parts": lambda m, x: torch.cat([(pairs(x) * m.turns[:, None]).real, (pairs(x) * m.turns[:, None]).imag], dim=-1),
    "moved": lambda m, x: back(torch.cat([pairs(x)[:, :3], -pairs(x)[:, 3:]], dim=1).transpose(1, 2) * m.turns).transpose(1, 2),
    "split": lambda m, x: back(
        torch.cat([part * m.turns[:, None, i : i + 1] for i, part in enumerate(pairs(x).split([1, 3], dim=-1))], dim=-1)
    ),
    "tables split": lambda m, x: back(pairs(x) * torch.cat([part.unsqueeze(1) for part in m.turns.split([1, 3], dim=-1)][::-1], dim=-1)),
    "their sizes": lambda m, x: torch.cat([(pairs(x) * m.turns[:, None]).abs(), x[..., ::2]], dim=-1),
}


@pytest.mark.parametrize("name", RULES)
def test_the_captured_graph_has_real_numbers_only_and_is_the_model(name: str) -> None:
    model = Rotated(RULES[name])
    x, t = torch.randn(2, TOKENS, HEADS * WIDTH, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 2.0])
    graph = capture(model, {"x": x, "timestep": t})
    assert not any(buffer.is_complex() for buffer in graph.buffers())
    assert not any("complex" in str(node.target) or "polar" in str(node.target) for node in graph.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(graph(x, t), model(x, t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
def test_rotary_embeddings_go_the_whole_way(target: str, tmp_path: Path) -> None:
    shape = (TOKENS, HEADS * WIDTH)
    checkpoint = make_checkpoint(Rotated(RULES["Qwen-Image's"]), tmp_path / "c", shape=shape, steps=2)
    made = export(checkpoint.artifact, tmp_path / "b", target=target, dtype="fp32", **WHOLE[target])
    x, t = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)), checkpoint.timesteps[:1].repeat(3)
    with torch.no_grad():
        assert snr_db(checkpoint.model(x, t), run(made, x, t)) > 40


def test_what_has_no_rule_is_named() -> None:
    with pytest.raises(ArtifactError, match=r"the model computes with complex numbers in aten\.exp\.default \(.*\), and no engine has any"):
        x = torch.zeros(2, TOKENS, HEADS * WIDTH)
        capture(Rotated(lambda _, x: back(pairs(x).exp())), {"x": x, "timestep": torch.tensor([1.0, 2.0])})
