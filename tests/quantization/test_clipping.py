"""The share of values that a quantizer's codes cannot say."""

from __future__ import annotations

import pytest
import torch

from dq_deploy.formats import of_bits
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.clipping import Clipped, counting
from dq_deploy.quantization.quantizers import TableQuantizer

T = torch.tensor([0.0, 10.0])


def quantizer(**options: object) -> TableQuantizer:
    made = TableQuantizer(T, of_bits(8), **{"symmetric": False, "axis": 1, "channels": 2, **options})  # type: ignore[arg-type]
    made.set_tables(torch.tensor([1.0, 0.5]), torch.tensor([0.0, -28.0]))
    return made


def test_what_is_beyond_the_last_codes_is_counted_by_row() -> None:
    """Codes −128 to 127: at t = 0 they say −128.5 to 127.5, at t = 10 with the zero-point −28 half of −100.5 to 155.5."""
    one, found = quantizer(), Clipped()
    x = torch.tensor([[-128.4, 127.4], [-128.6, 127.6], [-50.2, 77.7], [-50.3, 77.8]])
    found.add("q", one, x, torch.tensor([0.0, 0.0, 10.0, 10.0]))
    assert found.fractions() == {"q": [0.5, 0.5]}
    codes = one(x, torch.tensor([0.0, 0.0, 10.0, 10.0])).codes * torch.tensor([[1.0], [1.0], [0.5], [0.5]])
    outside = (codes - x).abs() > torch.tensor([[0.5], [0.5], [0.25], [0.25]])
    assert outside.sum(dim=1).tolist() == [0, 2, 0, 2]


def test_dilation_widens_what_a_channel_may_have() -> None:
    one, found = quantizer(), Clipped()
    one.dilation.copy_(torch.tensor([4.0, 1.0]))
    found.add("q", one, torch.tensor([[500.0, 100.0], [100.0, 500.0]]), torch.tensor([0.0, 0.0]))
    assert found.fractions() == {"q": [0.25, 0.0]}


def test_one_that_clips_nothing_is_not_there() -> None:
    found = Clipped()
    found.add("q", quantizer(), torch.zeros(3, 2), torch.zeros(3))
    assert found.fractions() == {}


def test_the_hooks_of_a_count_are_gone_afterwards_and_change_nothing(plain_checkpoint: Checkpoint) -> None:
    reference, names = plain_checkpoint.reference(), plain_checkpoint.details.inputs
    inputs = {names[0]: reference.samples[0] * 3, "timestep": reference.timesteps[0].repeat(reference.samples.shape[1])}
    before = plain_checkpoint.model(*[inputs[name] for name in names])
    with counting(plain_checkpoint.model) as found:
        during = plain_checkpoint.model(*[inputs[name] for name in names])
    assert torch.equal(before, during)
    assert not any(module._forward_hooks for module in plain_checkpoint.model.modules())
    shares = found.fractions()
    assert shares
    assert all(0 <= share <= 1 for row in shares.values() for share in row)
    assert all(sum(row[1:]) == 0 for row in shares.values())  # other timesteps were not run


def test_a_checkpoint_has_the_shares_of_its_held_out_samples(plain_checkpoint: Checkpoint) -> None:
    reference, names = plain_checkpoint.reference(), plain_checkpoint.details.inputs
    with counting(plain_checkpoint.model) as found:
        for row, timestep in enumerate(reference.timesteps):
            inputs = {names[0]: reference.samples[row], "timestep": timestep.repeat(reference.samples.shape[1])}
            plain_checkpoint.model(*[inputs[name] for name in names])
    rows = {float(t): index for index, t in enumerate(plain_checkpoint.table_timesteps)}
    calibrated = [rows[float(t)] for t in plain_checkpoint.timesteps]
    again = {name: [shares[index] for index in calibrated] for name, shares in found.fractions().items()}
    stored = plain_checkpoint.details.clipped
    assert stored.keys() == again.keys()
    for name, shares in stored.items():
        assert shares == pytest.approx(again[name], abs=2e-3)  # values at an edge fall either way
