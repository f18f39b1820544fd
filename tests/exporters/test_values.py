"""No pass between the model and the exported graph changes a value, whatever the size of a constant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dq_deploy.errors import ArtifactError
from dq_deploy.exporters.bundle import _finish, _tidy, write_model
from dq_deploy.exporters.lower import lower
from dq_deploy.exporters.skeleton import to_onnx
from tests.nightly import mostly_nightly
from tests.tiny import SHAPE, captured, run

SIZES = [1e-3, 1e-7, 9e-9, 1e-10, 1e-15, 1e-30]


class Mapped(nn.Module):
    """A function of the sample, with the timestep added where it changes nothing that is tested."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = self.function(x)
        return torch.cat([y, t.reshape(-1, 1, 1, 1).expand(-1, y.shape[1], 8, 1)], dim=-1)


def exported(function: Callable[[torch.Tensor], torch.Tensor], folder: Path, dtype: str = "fp32", **options: Any) -> Path:
    graph = captured(Mapped(function), **options)
    examples = {"x": torch.zeros(2, *SHAPE), "timestep": torch.tensor([1.0, 2.0])}
    model = to_onnx(graph, examples, {})
    lower(model, None, {}, {})
    _tidy(model)
    _finish(model, dtype)
    write_model(model, folder / "model.onnx")
    return folder / "model.onnx"


def samples(size: float) -> torch.Tensor:
    """Around zero, around the constant, ordinary and large."""
    x = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([0.0, size, size * 1e-3, 1e-4, 1.0, 1e4]).reshape(-1, 1, 1, 1)


FUNCTIONS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "added": lambda x, c: (x.abs() + c).log(),
    "added, the constant first": lambda x, c: torch.log(c + x * x),
    "subtracted": lambda x, c: (-x.abs() - c).abs().log(),
    "subtracted from": lambda x, c: (c - x).sign(),
    "multiplied": lambda x, c: x * c,
    "multiplied, nearly one": lambda x, c: x * (1 + 2**-17) - x + c,
    "divided": lambda x, c: x / c,
    "divided, nearly one": lambda x, c: x / (1 - 2**-17) - x + c,
    "a divisor": lambda x, c: x / (x.abs() + c),
    "a root": lambda x, c: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c),
    "compared": lambda x, c: (x > c).float() - (x < -c).float() + (x.abs() >= c).float(),
    "equal": lambda x, c: (x == c).float() + (x == 0).float() + (x != 0).float(),
    "bounded below": lambda x, c: x.abs().clamp(min=c).log(),
    "bounded above": lambda x, c: x.abs().clamp(max=c),
    "bounded": lambda x, c: x.clamp(-c, c).sign() + x.clamp(-c, c) / c,
    "bounded twice, apart": lambda x, c: x.clamp(0, c).clamp(2 * c, 3 * c) / c,
    "bounded below zero, then not": lambda x, c: torch.relu(x.clamp(-2 * c, -c)) / c,
    "the larger": lambda x, c: torch.maximum(x, torch.full_like(x, c)).log(),
    "the smaller": lambda x, c: torch.minimum(x.abs(), torch.full_like(x, c)) / c,
    "in turn": lambda x, c: (((x + c) - c) + c).abs(),
    "a threshold": lambda x, c: torch.where(x.abs() < c, torch.full_like(x, c), x).abs().log(),
    "a slope": nn.functional.leaky_relu,
    "normalized": lambda x, c: nn.functional.normalize(x, dim=-1, eps=c),
    "a norm's epsilon": lambda x, c: nn.functional.layer_norm(x, (8,), eps=c),
}


@pytest.mark.parametrize("size", mostly_nightly(SIZES, 1e-7))
def test_a_constant_keeps_its_value(size: float, tmp_path: Path) -> None:
    """Equal to the last bits, NaN and infinity too: what PyTorch makes of zeros is what the graph does."""
    x, t = samples(size), torch.ones(6)
    got = run(exported(lambda x: torch.cat([f(x, size) for f in FUNCTIONS.values()], dim=1), tmp_path), x, t)[..., :-1]
    for index, (name, function) in enumerate(FUNCTIONS.items()):
        torch.testing.assert_close(
            got[:, index : index + 1],
            function(x, size),
            rtol=2e-5,
            atol=1e-30,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_booleans_are_chosen_by_logic(tmp_path: Path) -> None:
    """ONNX Runtime's Where takes none."""
    x, t = samples(1.0), torch.ones(6)

    def function(x: torch.Tensor) -> torch.Tensor:
        chosen = torch.where(x > 0, x < 1, x > -1)
        return torch.cat([(x > 0).masked_fill(x.abs() < 0.5, value).float() for value in (True, False)] + [chosen.float()], dim=1)

    assert torch.equal(run(exported(function, tmp_path), x, t)[..., :-1], function(x))


def test_the_exporters_message_comes_whole_and_without_colours(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the ONNX exporter failed: ") as caught:
        exported(torch.special.bessel_j0, tmp_path)
    assert "No ONNX function found for <OpOverload(op='prims.bessel_j0'" in caught.value.message
    assert "\x1b" not in caught.value.message
    assert "Traceback" not in caught.value.message


def test_a_fourier_transform_is_named_before_a_builder_meets_it(tmp_path: Path) -> None:
    """As FreeU has one; a graph from elsewhere is the lint's matter (``no-such-operator``)."""
    with pytest.raises(ArtifactError, match=r"complex numbers in aten\.fft_fftn.*\n.*FreeU"):
        exported(lambda x: torch.fft.ifftn(torch.fft.fftn(x, dim=(-2, -1)), dim=(-2, -1)).real, tmp_path)
