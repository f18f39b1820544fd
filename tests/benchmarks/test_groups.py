"""The network of moving garments: what its videos and prompts are."""

from __future__ import annotations

import pytest
import torch

from benchmarks.groups import garments
from benchmarks.groups.study import subject
from dq_deploy.errors import UsageError


def test_garments_move_as_the_prompt_says() -> None:
    image = torch.full((1, 1, 16, 16), -1.0)
    image[..., 8, 6] = 1.0
    right, left, down, up = (garments.moving(image, torch.tensor([way]))[0, 0] for way in range(4))
    places = [[tuple(place) for place in (video == 1).nonzero()[:, 1:].tolist()] for video in (right, left, down, up)]
    assert places[0] == [(8, 3), (8, 5), (8, 7), (8, 9)]
    assert places[1] == places[0][::-1]
    assert places[2] == [(5, 6), (7, 6), (9, 6), (11, 6)]
    assert places[3] == places[2][::-1]


def test_prompts_are_all_there_and_neighbours_differ_in_both_words() -> None:
    prompts = garments.every_prompt()
    assert prompts.shape == (40, 2, garments.TOKEN)
    assert len({tuple(prompt.flatten().tolist()) for prompt in prompts}) == 40
    assert bool((prompts[1:] != prompts[:-1]).any(dim=-1).all())


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown network 'latte'\nnetworks: garments"):
        subject("latte")
