"""Capturing with free sizes: which dimensions they are, what they may be, and networks that fix them."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn

from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.quantization.calibration.sized_source import _shares, sizes_of
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.capture import capture
from dq_deploy.quantization.graph.edit import aten
from dq_deploy.quantization.graph.free_sizes import FreeSize, free_sizes
from dq_deploy.quantization.graph.shapes import at_batch_one, static_shape
from dq_deploy.quantization.size_between import candidates
from tests.tiny_pipelines import tiny_pixart


class Patches(nn.Module):
    """A transformer's ends: patches of 2×2 pixels as tokens and back, with positions of ``kind``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.first = nn.Conv2d(1, 8, 2, stride=2)
        self.table = nn.Parameter(torch.randn(1, 16, 8))
        self.last = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        tokens = self.first(x).flatten(2).transpose(1, 2) + timestep[:, None, None]
        tokens = self.last(tokens + self.positions(height, width)).reshape(x.shape[0], height, width, 1, 2, 2)
        return tokens.permute(0, 3, 1, 4, 2, 5).reshape(x.shape[0], 1, 2 * height, 2 * width)

    def positions(self, height: int, width: int) -> torch.Tensor | float:
        if self.kind == "table" or (self.kind == "table for its own" and height == 4):
            return self.table
        if self.kind == "numpy":
            import numpy as np

            return torch.from_numpy(np.linspace(0, 1, height * width, dtype=np.float32))[None, :, None]
        rows, columns = torch.arange(height).float()[:, None], torch.arange(width).float()
        return (rows + columns).reshape(1, -1, 1) if self.kind == "computed" else 0.0


def example(height: int, width: int) -> dict[str, torch.Tensor]:
    sample = torch.randn(2, 1, height, width, generator=torch.Generator().manual_seed(1))
    return {"x": sample, "timestep": torch.tensor([1.0, 2.0])}


@pytest.mark.parametrize("kind", ["none", "computed"])
def test_height_and_width_are_free(kind: str) -> None:
    model = Patches(kind).eval()
    graph = capture(model, example(8, 8), others=[example(12, 8)])
    assert graph.meta["free"] == {
        "height": FreeSize("height", (8, 12), (("x", 2),), multiple=2),
        "width": FreeSize("width", (8, 8), (("x", 3),), multiple=2),
    }
    inputs = example(10, 6)
    torch.testing.assert_close(graph(*inputs.values()), model(*inputs.values()))


def test_sizes_are_computed_from_those_of_the_inputs() -> None:
    graph = capture(Patches("computed").eval(), example(8, 8), others=[example(12, 8)])
    sizes = [n for n in graph.graph.nodes if isinstance(n.meta.get("val"), torch.SymInt)]
    assert sizes
    assert {n.target for n in sizes} <= {aten.sym_size.int, operator.mul, operator.add, operator.floordiv}
    assert all(n.args[0].op == "placeholder" for n in sizes if n.target == aten.sym_size.int)


def test_shapes_for_one_sample_are_those_of_the_capture() -> None:
    graph = capture(Patches("none").eval(), example(8, 12), others=[example(8, 8)])
    conv = next(n for n in graph.graph.nodes if n.target == aten.conv2d.default)
    assert static_shape(conv.meta["val"]) == [1, 8, 4, 6]
    assert at_batch_one(conv.meta["val"].shape[0] * conv.meta["val"].shape[2]) == 4


def test_without_other_sizes_nothing_is_free() -> None:
    graph = capture(Patches("table").eval(), example(8, 8))
    assert graph.meta["free"] == {}
    assert not [n for n in graph.graph.nodes if n.target == aten.sym_size.int and n.args[1] != 0]


def test_a_network_that_runs_at_its_own_size_alone_is_refused_with_its_line() -> None:
    with pytest.raises(ArtifactError, match=r"Patches does not run on x \[2, 1, 12, 8\]") as error:
        capture(Patches("table").eval(), example(8, 8), others=[example(12, 8)])
    assert "tokens + self.positions(height, width)" in error.value.message
    assert "leave --sizes and --tokens out" in str(error.value.hint)


def test_a_network_whose_positions_are_numbers_is_refused_with_the_reason() -> None:
    with pytest.raises(
        ArtifactError, match="Patches (fixes height and width, which --sizes is to leave|cannot be captured with height and width) free: "
    ):
        capture(Patches("numpy").eval(), example(8, 8), others=[example(12, 8)])


def test_a_table_for_one_size_is_not_taken_for_others() -> None:
    """Captured where positions are computed; at the size that has a table these are others, so the graph is not the model."""
    with pytest.raises(ArtifactError, match="Patches fixes height and width, which --sizes is to leave free: "):
        capture(Patches("table for its own").eval(), example(8, 8), others=[example(12, 8)])


def test_a_network_that_computes_positions_for_other_sizes_is_captured_at_one_of_these() -> None:
    """Diffusers' PatchEmbed has a table for the size of the configuration: what it computes for that is the same."""
    model = tiny_pixart().transformer

    def at(height: int, width: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        text = torch.randn(2, 5, model.config.caption_channels, generator=generator)
        sample = torch.randn(2, 4, height, width, generator=generator)
        return {"hidden_states": sample, "encoder_hidden_states": text, "timestep": torch.tensor([1.0, 2.0])}

    own = model.config.sample_size
    graph = capture(model, at(own, own), others=[at(own - 8, own)])
    assert {name: size.values for name, size in graph.meta["free"].items()} == {"height": (own, own - 8), "width": (own, own)}
    given = at(own - 4, own - 2)
    torch.testing.assert_close(graph(*given.values()), model(**given).sample, rtol=1e-3, atol=1e-3)


def inputs(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def test_conditions_that_grow_with_the_sample_have_its_names() -> None:
    small = inputs(sample=(2, 4, 8, 8), timestep=(2,), control=(2, 3, 8, 8), residual=(2, 8, 4, 4), text=(2, 7, 16))
    large = inputs(sample=(2, 4, 12, 12), timestep=(2,), control=(2, 3, 12, 12), residual=(2, 8, 6, 6), text=(2, 7, 16))
    found = free_sizes(small, [large])
    assert {name: size.axes for name, size in found.items()} == {
        "height": (("sample", 2), ("control", 2)),
        "width": (("sample", 3), ("control", 3)),
        "residual_2": (("residual", 2),),
        "residual_3": (("residual", 3),),
    }
    followers = {name: (size.of, size.ratio) for name, size in found.items() if size.of}
    assert followers == {"residual_2": ("height", Fraction(1, 2)), "residual_3": ("width", Fraction(1, 2))}
    assert found["residual_2"].record() == {"values": [4, 6], "axes": [["residual", 2]], "multiple": 1, "of": "height", "ratio": [1, 2]}


def test_an_edge_that_all_sizes_have_is_free_in_conditions_too() -> None:
    small, large = (
        inputs(sample=(2, 4, n, 8), timestep=(2,), residual=(2, 8, n // 2, 4), keys=(2, 2, 8 * n, 16)) for n in (8, 12)
    )  # keys: as many as pixels, which no ratio of one edge is
    found = free_sizes(small, [large])
    assert {name: size.of for name, size in found.items()} == {
        "height": None, "width": None, "residual_2": "height", "residual_3": "width", "keys_2": None,
    }  # fmt: skip


class Steered(nn.Module):
    """Halves its sample, and takes a residual of that size."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        halved = self.down(x) + residual + timestep[:, None, None, None]
        return self.up(nn.functional.interpolate(halved, scale_factor=2.0))


def test_a_multiple_is_found_with_what_follows() -> None:
    small, large = ({**example(n, 8), "residual": torch.zeros(2, 4, n // 2, 4)} for n in (8, 16))
    free = capture(Steered().eval(), small, others=[large]).meta["free"]
    assert {name: size.multiple for name, size in free.items() if size.of is None} == {"height": 2, "width": 2}


def test_tokens_of_a_transformer() -> None:
    small, large = (inputs(hidden_states=(2, n, 8), timestep=(2,), img_ids=(2, n, 3)) for n in (16, 24))
    assert free_sizes(small, [large]) == {"picture_tokens": FreeSize("picture_tokens", (16, 24), (("hidden_states", 1), ("img_ids", 1)))}


def test_lengths_of_the_text_beside_a_pictures_tokens() -> None:
    first, wider, longer = (
        inputs(hidden_states=(2, n, 8), timestep=(2,), text=(2, 5 + m, 6), txt_ids=(2, 5 + m, 3), mask=(2, 5 + m), joint=(2, n + m))
        for n, m in ((16, 3), (24, 3), (16, 9))
    )
    found = free_sizes(first, [wider, longer])
    assert {name: size.axes for name, size in found.items()} == {
        "picture_tokens": (("hidden_states", 1),),
        "tokens": (("text", 1), ("txt_ids", 1), ("mask", 1)),
        "joint_1": (("joint", 1),),
    }
    assert found["tokens"].values == (8, 8, 14)


def test_a_size_of_the_batch_cannot_be_free() -> None:
    small, large = (inputs(sample=(2, 4, n, 8), timestep=(2,)) for n in (2, 4))
    with pytest.raises(UsageError, match="a height of 2 cannot be free"):
        free_sizes(small, [large])


@pytest.mark.parametrize("sizes", [["16x16", "24×32"], [[16, 16], [24, 32]], ["16X16", [24, 32]]])
def test_sizes_in_a_configuration(sizes: list[Any]) -> None:
    assert QuantizeConfig.build(sizes=sizes).sizes == ((16, 16), (24, 32))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (["512"], "a size is height x width, such as 512x768"),
        (["512x0", "1x1"], "greater than or equal to 1"),
        (["512x512"], "two sizes or more, all different, not 512x512: one size of a picture is --height and --width"),
        (["512x512", "512x512"], "all different"),
        ([f"{edge}x8" for edge in range(1, 40)], "calibration_samples is 64, and each of 39 sizes needs two"),
    ],
)
def test_bad_sizes(sizes: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        QuantizeConfig.build(sizes=sizes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": [8, 8]}, "tokens takes lengths that are all different, not 8,8"),
        ({"tokens": [2, 8]}, "greater than or equal to 3"),
        ({"tokens": [True]}, "tokens"),
        ({"tokens": list(range(3, 40))}, "calibration_samples is 64, and each of 37 sizes needs two of them"),
    ],
)
def test_bad_lengths_of_text(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        QuantizeConfig.build(**options)


def test_sizes_and_lengths_vary_one_at_a_time() -> None:
    assert list(map(str, sizes_of([(16, 16), (16, 24)], [4, 8, 9]))) == [
        "16x16, 4 tokens", "16x24, 4 tokens", "16x16, 8 tokens", "16x16, 9 tokens",
    ]  # fmt: skip
    assert list(map(str, sizes_of([], [4, 8]))) == ["4 tokens", "8 tokens"]
    assert list(map(str, sizes_of([(16, 16), (16, 24)], []))) == ["16x16", "16x24"]


def test_samples_are_dealt_to_the_sizes() -> None:
    assert _shares(range(10, 18), 3) == [range(10, 12), range(12, 15), range(15, 18)]


@pytest.mark.parametrize(
    ("sizes", "multiple", "first"),
    [
        (((512, 512), (768, 512), (1024, 1024)), 8, (768, 768)),
        (((512, 512), (768, 512)), 8, (640, 512)),
        (((8, 8), (12, 8)), 2, (10, 8)),
    ],
)
def test_the_most_central_size_that_is_not_calibrated(sizes: Any, multiple: int, first: tuple[int, int]) -> None:
    scale = 8 if sizes[0][0] >= 64 else 1
    free = {
        name: FreeSize(name, tuple(size[axis] // scale for size in sizes), multiple=multiple)
        for axis, name in enumerate(("height", "width"))
    }
    assert next(candidates(sizes, free)) == first


def test_no_size_between_where_the_network_takes_none() -> None:
    free = {name: FreeSize(name, values, multiple=4) for name, values in (("height", (8, 12)), ("width", (8, 8)))}
    assert list(candidates(((8, 8), (12, 8)), free)) == []
