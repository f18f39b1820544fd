"""What is set around a network, by its own forward or by the caller: autocast, gradients, the default type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dq_deploy.quantization.graph.edit import aten
from tests.tiny import SHAPE, PlainUNet, captured, make_checkpoint, planned, targets


class Autocast(nn.Module):
    """The middle under autocast; ``bf16`` mixes types that only autocast brings together."""

    def __init__(self, *settings: Any, enabled: bool = True, bf16: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.settings, self.enabled, self.bf16 = settings, enabled, bf16
        self.first, self.middle, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.first(x) + t[:, None, None, None]
        with torch.autocast(*self.settings, enabled=self.enabled):
            h = self.middle(h.bfloat16() if self.bf16 else h).sigmoid()
        return self.last(h.float())


SETTINGS = [("cpu", torch.bfloat16, True), ("cpu", torch.bfloat16, False), ("cuda", torch.float16, True), ("cuda", torch.float32, False)]


@pytest.mark.parametrize(("device", "dtype", "enabled"), SETTINGS)
@pytest.mark.filterwarnings("ignore")
def test_what_a_model_does_under_autocast_is_captured_in_float32(device: str, dtype: torch.dtype, enabled: bool) -> None:
    model = Autocast(device, dtype, enabled=enabled).eval()
    plain = Autocast("cpu", torch.bfloat16, enabled=False).eval()
    graph = captured(model)
    assert all(not str(target).startswith("higher_order") and "_to_copy" not in target for target in targets(graph))
    x, t = torch.randn(3, *SHAPE), torch.arange(3.0)
    torch.testing.assert_close(graph(x, t), plain(x, t), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(graph(x, t), model(x, t), rtol=2e-2, atol=2e-2)
    assert len(planned(graph, max_float_share=1.0).quantized) == 2


def test_types_that_only_autocast_brings_together_are_cast_by_the_graph(tmp_path: Path) -> None:
    model = Autocast("cpu", torch.bfloat16, bf16=True).eval()
    graph = captured(model)
    x, t = torch.randn(3, *SHAPE), torch.arange(3.0)
    torch.testing.assert_close(graph(x, t), model(x, t), rtol=1e-5, atol=1e-6)
    assert next(n for n in graph.graph.nodes if n.op == "call_function" and n.meta["path"] == "middle").meta["stack"]
    checkpoint = make_checkpoint(model, tmp_path / "checkpoint", max_float_share=1.0)  # integers beside bfloat16
    assert [layer.name for layer in checkpoint.details.layers] == ["middle", "last"]
    assert min(checkpoint.details.snr_db["after_distillation"]) > 25


class Gradients(nn.Module):
    """Parts with and without gradients, as checkpointing and frozen encoders have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(True):
            h = self.first(x) * t[:, None, None, None]
        with torch.enable_grad():
            h = h.relu()
        with torch.no_grad():
            return self.last(h)


class Inference(Gradients):
    @torch.inference_mode()
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.last((self.first(x) * t[:, None, None, None]).relu())


@pytest.mark.parametrize("kind", [Gradients, Inference])
def test_parts_with_and_without_gradients_are_parts_of_the_graph(kind: type[nn.Module]) -> None:
    model = kind()
    graph = captured(model)
    x, t = torch.randn(3, *SHAPE), torch.arange(3.0)
    torch.testing.assert_close(graph(x, t), model(x, t), rtol=1e-5, atol=1e-6)
    assert {n.meta["path"] for n in graph.graph.nodes if n.target == aten.conv2d.default} == {"first", "last"}


def settings() -> Any:
    return torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.no_grad()


@pytest.mark.parametrize("index", range(3), ids=["autocast", "inference_mode", "no_grad"])
def test_what_the_caller_set_does_not_reach_the_checkpoint(index: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"iterations": 2, "steps": 2, "max_float_share": 1.0}
    make_checkpoint(PlainUNet(), tmp_path / "plain", **options)
    with settings()[index]:
        make_checkpoint(PlainUNet(), tmp_path / "set", **options)
    assert (tmp_path / "set" / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes()


def test_a_default_of_float64_does_not_reach_the_checkpoint(tmp_path: Path) -> None:
    model, options = PlainUNet(), {"steps": 2, "max_float_share": 1.0}
    make_checkpoint(model, tmp_path / "plain", **options)
    torch.set_default_dtype(torch.float64)
    try:
        make_checkpoint(model, tmp_path / "set", **options)
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert (tmp_path / "set" / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes()
