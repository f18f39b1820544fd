"""How a network is called: what a call's form is, what it makes of other calls, and what comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetOutput
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

import dq_deploy
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.quantization.calling import (
    CallForm,
    OutputForm,
    call_of_record,
    call_record,
    described,
    from_conditions,
    output_form,
    packed,
    timestep_of,
)

N = 4


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


class Network(nn.Module):
    """Takes all that diffusers' networks take: a dictionary, a tuple, positions for the whole batch, frames, lists and options."""

    def forward(
        self,
        sample: Any,
        timestep: Any,
        text: Any = None,
        residuals: Any = None,
        added_cond_kwargs: Any = None,
        image_rotary_emb: Any = None,
        img_shapes: Any = None,
        frames: int = 1,
        scales: tuple[float, ...] = (1.0, 2.0),
        options: Any = None,
        return_dict: bool = True,
    ) -> Any:
        return dict(locals()) if return_dict else None


def arguments(batch: int = N) -> dict[str, Any]:
    return {
        "sample": numbers(batch, 1, 4, 4),
        "timestep": torch.tensor(7.0),
        "text": numbers(batch * 3, 5, 2),
        "residuals": (numbers(batch, 2), [numbers(batch, 3), 0.5]),
        "added_cond_kwargs": {"text_embeds": numbers(batch, 6), "frames": numbers(batch, 1), "nothing": None},
        "image_rotary_emb": (numbers(7, 2), numbers(7, 2)),
        "img_shapes": [[(1, 2, 3)]] * batch,
        "frames": 3,
        "scales": [1.0, 2.0],
        "options": {},
        "return_dict": False,
    }


def form_of(batch: int = N) -> CallForm:
    first = described(Network(), arguments(1), batch=1)
    assert first.unsettled == {"text": 3}  # three for each sample, or three for all
    return described(Network(), arguments(batch), batch=batch, before=(first.unsettled, 1)).form


def test_a_call_is_taken_apart_and_put_together_again() -> None:
    form, given = form_of(), arguments()
    inputs = form.bind((), given)
    assert list(inputs) == [
        "sample", "timestep", "text", "residuals_0", "residuals_1_0", "text_embeds", "added_cond_kwargs_frames",
        "image_rotary_emb_0", "image_rotary_emb_1",
    ]  # fmt: skip
    assert {len(value) for name, value in inputs.items() if name != "timestep"} == {N}
    assert inputs["text"].shape == (N, 3, 5, 2)
    assert inputs["image_rotary_emb_0"].shape == (N, 7, 2)
    got = form.call(Network(), inputs)
    for name in ("sample", "text"):
        torch.testing.assert_close(got[name], given[name])
    for a, b in zip((got["residuals"][0], got["residuals"][1][0], *got["image_rotary_emb"]),
                    (given["residuals"][0], given["residuals"][1][0], *given["image_rotary_emb"]), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b)
    assert (got["residuals"][1][1], got["frames"], got["scales"], got["img_shapes"]) == (0.5, 3, (1.0, 2.0), given["img_shapes"])
    assert got["added_cond_kwargs"]["nothing"] is None
    torch.testing.assert_close(got["added_cond_kwargs"]["frames"], given["added_cond_kwargs"]["frames"])


def test_lists_of_samples_are_told_from_a_list_of_one_that_each_sample_has() -> None:
    form = described(Network(), {"sample": numbers(1, 1, 4, 4), "timestep": 7, "img_shapes": [[(1, 2, 3)]]}, batch=1).form
    given = {"sample": numbers(N, 1, 4, 4), "timestep": 7, "img_shapes": [[(1, 2, 3)]] * N}
    assert form.call(Network(), form.bind((), given))["img_shapes"] == given["img_shapes"]


def test_a_manifest_holds_the_form() -> None:
    form = form_of()
    record = json.loads(json.dumps(form.record(["sample", "timestep"])))
    again = CallForm.of_record(record)
    torch.testing.assert_close(again.bind((), arguments()), form.bind((), arguments()))
    # Other batches too.
    assert {len(value) for name, value in again.bind((), arguments(2)).items() if name != "timestep"} == {2}
    assert again.call(Network(), again.bind((), arguments(3)))["img_shapes"] == [[(1, 2, 3)]] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 4}, "frames is 4, and the graph was made with 3\ngive what it was quantized with"),
        ({"frames": True}, "frames is True, and the graph was made with 3"),
        ({"frames": None}, "frames is None, and the graph was made with 3"),
        ({"residuals": (numbers(N, 2),)}, r"residuals is a tuple of 1: a tensor \[4, 2\], and the graph was made with 2 of them"),
        ({"residuals": (numbers(N, 2), [numbers(N, 3), 0.7])}, r"residuals.1.1 is 0.7, and the graph was made with 0.5"),
        ({"residuals": (numbers(N, 2), [None, 0.5])}, "residuals.1.0 is None, and the graph was made with a tensor"),
        ({"added_cond_kwargs": {"text_embeds": numbers(N, 6)}}, "of text_embeds, and the graph was made with a dictionary of text_"),
        ({"img_shapes": [[(1, 2, 4)]] * N}, "img_shapes.0.0.2 is 4, and the graph was made with 3"),
        ({"img_shapes": [[(1, 2, 3)]]}, "img_shapes is .*, and a list with an entry for each of the 4 samples is needed"),
        ({"text": numbers(N * 2, 5, 2)}, r"text is a tensor \[8, 5, 2\], and 3 for each of the 4 samples are needed"),
        ({"scales": (1.0, 3.0)}, r"scales is \(1.0, 3.0\), and the graph was made with \[1.0, 2.0\]\nleave it out, or quantize"),
        ({"options": {"scale": 1.0}}, "this model was exported without scale; it takes sample, timestep, text"),
        ({"sample": None}, "input 'sample' is missing"),
    ],
)  # fmt: skip
def test_a_call_of_another_form_is_refused(change: dict[str, Any], message: str) -> None:
    form = form_of()
    with pytest.raises(UsageError, match=message):
        form.bind((), arguments() | change, list(form.bind((), arguments())))


def test_arguments_that_are_missing_or_given_twice() -> None:
    form, given = form_of(), arguments()
    sample, timestep = given.pop("sample"), given.pop("timestep")
    with pytest.raises(UsageError, match="input 'timestep' is given twice\ninputs in their order: sample, "):
        form.bind((sample, timestep), given | {"timestep": 0})
    del given["frames"], given["residuals"]
    with pytest.raises(UsageError, match="this model is called with residuals, frames=3, which is missing"):
        form.bind((sample, timestep), given)


def test_what_is_no_tensor_and_no_constant() -> None:
    for value in (object(), float("nan"), numbers(N, 2).to(torch.complex64)):
        with pytest.raises(UsageError, match="Network is called with options.x = .*, which is neither tensors nor numbers and text"):
            described(Network(), arguments() | {"options": {"x": value}}, batch=N)


def test_conditions_from_python() -> None:
    form, tensors = from_conditions(
        Network(),
        {
            "text": dq_deploy.stacked(numbers(5, 3, 2)),
            "residuals": (numbers(2, 4), dq_deploy.whole_batch(numbers(9))),
            "image_rotary_emb": (numbers(7, 2), numbers(7, 2)),
            "text_embeds": numbers(2, 6),
            "frames": 3,
        },
    )
    assert {name: list(value.shape) for name, value in tensors.items()} == {
        "text": [5, 3, 2], "residuals_0": [2, 4], "residuals_1": [1, 9], "image_rotary_emb_0": [1, 7, 2], "image_rotary_emb_1": [1, 7, 2],
        "text_embeds": [2, 6],
    }  # fmt: skip
    rows = {name: value[:1].expand(N, *value.shape[1:]) for name, value in tensors.items()}
    got = form.call(Network(), {"sample": numbers(N, 1), "timestep": numbers(N), **rows})
    assert got["text"].shape == (N * 3, 2)
    assert got["residuals"][1].shape == (9,)
    assert got["image_rotary_emb"][1].shape == (7, 2)
    assert got["added_cond_kwargs"]["text_embeds"].shape == (N, 6)
    assert got["frames"] == 3


def test_the_timestep_goes_by_several_names() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor, text: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x + text * t[:, None]

    assert timestep_of(Odd()) == "t"
    form = CallForm.plain(Odd(), ["text"])
    x, text, t = numbers(N, 2), numbers(N, 2) * 2, torch.arange(N).float()
    torch.testing.assert_close(form.call(Odd(), {"x": x, "text": text, "timestep": t}), Odd()(x, text, t))
    again = CallForm.of_record(form.record(["x", "text", "timestep"]) or {})
    for args, kwargs in (((x, text, t), {}), ((x,), {"t": t, "text": text}), ((x,), {"timestep": t, "text": text})):
        torch.testing.assert_close(again.bind(args, kwargs), {"x": x, "text": text, "timestep": t})


def restored(output: Any, **options: bool) -> Any:
    form = output_form(output, nn.Identity(), N)
    record = form.record("Identity")
    again = call_of_record({"arguments": None, "output": json.loads(json.dumps(record))}, ["x", "timestep"], "Identity")[1]
    return again.restore(packed(output), return_dict=options.get("return_dict", True))


def test_outputs_of_any_structure_come_back() -> None:
    several = ControlNetOutput(down_block_res_samples=(numbers(N, 2, 3), numbers(N, 5)), mid_block_res_sample=numbers(N, 1, 4, 4))
    got = restored(several)
    assert isinstance(got, ControlNetOutput)
    torch.testing.assert_close(got.mid_block_res_sample, several.mid_block_res_sample)
    torch.testing.assert_close(got.down_block_res_samples, several.down_block_res_samples)
    down, mid = restored(several, return_dict=False)
    assert (down[1].shape, mid.shape) == ((N, 5), (N, 1, 4, 4))
    nested: Any = {"a": [numbers(N, 2)], 3: numbers(N)}
    torch.testing.assert_close(restored(nested), nested)
    assert [t.shape for t in restored([numbers(N, 2), numbers(N, 3)])] == [(N, 2), (N, 3)]


def test_of_a_tuple_the_first_and_of_a_dictionary_the_sample_counts() -> None:
    first = numbers(N, 2)
    assert packed((first, numbers(3))) is first
    assert packed({"sample": first, "aux": numbers(3)}) is first
    assert output_form((first, "words"), nn.Identity(), N).tree == {"tensor": [2]}


def test_one_tensor_needs_no_word() -> None:
    assert call_record(CallForm(("x", "timestep")), OutputForm({"tensor": [2]}), ["x", "timestep"], "Identity") is None
    usual = output_form(Transformer2DModelOutput(sample=numbers(N, 2)), nn.Identity(), N)
    assert usual.record("SomeTransformer2DModel") is None
    assert usual.record("Other") == {
        "dict": [["sample", {"tensor": [2]}]],
        "class": "diffusers.models.modeling_outputs.Transformer2DModelOutput",
    }


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (numbers(N, 2).long(), r"Identity returns a tensor \[4, 2\] of int64 for a batch of 4, and an output is numbers \[N, ...\]"),
        ([numbers(N, 2), torch.tensor(1.0)], r"Identity returns a tensor \[\] of float32 for a batch of 4"),
        ([numbers(N, 2), None], "Identity returns NoneType, and a tensor is needed, or several of them"),
        ([], "Identity returns list, and a tensor is needed"),
    ],
)  # fmt: skip
def test_outputs_that_are_none(output: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        output_form(output, nn.Identity(), N)
