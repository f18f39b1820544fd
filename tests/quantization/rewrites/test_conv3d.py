"""3-d convolutions: each becomes the product that its rule says, computes what it did, and can be quantized with rows of its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dq_deploy.quantization.graph.products import find_layers, frames_of
from tests.tiny import captured

FRAMES, SHAPE = 4, (4, 4, 6, 8)


class Network(nn.Module):
    """One 3-d convolution of a video [N, 4, F, H, W]."""

    def __init__(self, kind: Callable[..., nn.Module] = nn.Conv3d, channels: int = 6, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = kind(4, channels, **options)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.conv(x * (1 + timestep[:, None, None, None, None] / 1000))


PATCHES = {
    "patches": {"kernel_size": (1, 2, 2), "stride": (1, 2, 2)},
    "patches over time": {"kernel_size": 2, "stride": 2, "bias": False},
}
OVER_TIME = {
    "over time": {"kernel_size": (3, 1, 1), "padding": (1, 0, 0)},
    "over time, every second frame": {"kernel_size": (3, 1, 1), "stride": (2, 1, 1), "padding": (2, 0, 0), "dilation": (2, 1, 1)},
    "over time, in groups": {"kernel_size": (3, 1, 1), "padding": (1, 0, 0), "groups": 2},
}
OF_FRAMES = {
    "of frames": ({"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "stride": (1, 2, 1), "groups": 2}, FRAMES),
    "of all": ({"kernel_size": 3, "padding": 1}, FRAMES),
    "without padding": ({"kernel_size": (2, 3, 1), "dilation": (2, 1, 1), "bias": False}, FRAMES - 2),
    "of every second frame": ({"kernel_size": 3, "padding": 1, "stride": 2}, FRAMES // 2),
    "patches that leave a rest": ({"kernel_size": (1, 4, 4), "stride": (1, 4, 4)}, FRAMES),
}
_EVERY = [(o, "linear", 1) for o in PATCHES.values()] + [(o, "conv2d", 1) for o in OVER_TIME.values()]
_EVERY += [(options, "conv2d", frames) for options, frames in OF_FRAMES.values()]


@pytest.mark.parametrize(("options", "op", "frames"), _EVERY, ids=[*PATCHES, *OVER_TIME, *OF_FRAMES])
def test_a_convolution_in_other_words_is_the_same(options: dict[str, Any], op: str, frames: int) -> None:
    model = Network(**options).eval()
    graph = captured(model, SHAPE)
    x, timestep = torch.randn(3, *SHAPE), torch.tensor([3.0, 500.0, 900.0])
    with torch.no_grad():
        expected = model(x, timestep)
        torch.testing.assert_close(graph(x, timestep), expected, rtol=1e-5, atol=1e-5)
    (layer,) = find_layers(graph)
    assert (layer.name, layer.op, layer.float_reason, frames_of(layer.node)) == ("conv", op, None, frames)
    assert layer.macs == expected[0].numel() * model.conv.weight[0].numel()


TRANSPOSED = {
    "of frames": ({"kernel_size": (1, 4, 4), "stride": (1, 2, 2), "padding": (0, 1, 1)}, FRAMES),
    "of all": ({"kernel_size": (4, 3, 2), "stride": (2, 1, 2), "padding": (1, 1, 0), "bias": False}, FRAMES),
}


@pytest.mark.parametrize(("options", "frames"), TRANSPOSED.values(), ids=TRANSPOSED)
def test_a_transposed_convolution_in_other_words_is_the_same(options: dict[str, Any], frames: int) -> None:
    model = Network(nn.ConvTranspose3d, **options).eval()
    graph = captured(model, SHAPE)
    x, timestep = torch.randn(3, *SHAPE), torch.tensor([3.0, 500.0, 900.0])
    with torch.no_grad():
        torch.testing.assert_close(graph(x, timestep), model(x, timestep), rtol=1e-5, atol=1e-5)
    (layer,) = find_layers(graph)
    assert (layer.name, layer.op, layer.float_reason, frames_of(layer.node)) == ("conv", "conv2d", None, frames)


def test_what_has_no_other_words_stays_in_float() -> None:
    (layer,) = find_layers(captured(Network(kernel_size=3, padding=1, groups=2), SHAPE))
    assert layer.float_reason == "no integer form for conv3d"
