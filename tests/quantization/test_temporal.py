"""The Temporal Parallel Quantizer: one pass over mixed timesteps trains every row as a loop over the timesteps would."""

from __future__ import annotations

import pytest
import torch
from torch.fx import GraphModule

from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.graph.calls import arguments
from tests.nightly import mostly_nightly
from tests.tiny import PlainUNet, captured, quantized_copy, tiny_unet, trajectories


def prepared(kind: str, **options: object) -> tuple[GraphModule, Trajectories]:
    graph = captured(PlainUNet() if kind == "plain" else tiny_unet())
    data = trajectories(graph)
    quantized, _ = quantized_copy(graph, data, **options)
    # The time embedding computes in fp32 whatever the weights are: only its result is widened.
    for node in quantized.graph.nodes:
        if node.op == "call_function" and torch.float32 in node.args:
            node.args = tuple(torch.float64 if a is torch.float32 else a for a in node.args)
        if node.kwargs.get("dtype") is torch.float32:
            node.kwargs = {**node.kwargs, "dtype": torch.float64}
    quantized.recompile()
    return quantized.double(), data


def gradients(quantized: GraphModule, data: Trajectories, parts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the summed squared error, accumulated over ``parts`` of the flat samples."""
    samples, timestep, _ = data.flat(slice(None))
    target = data.outputs.flatten(0, 1).double()
    quantized.zero_grad()
    for part in parts:
        output = quantized(*arguments(quantized, samples[part].double(), timestep[part].double(), {}))
        (output - target[part]).pow(2).sum().backward()
    found = {n: p.grad for n, p in quantized.named_parameters() if p.grad is not None}
    return {n: (g.to_dense() if g.is_sparse else g).clone() for n, g in found.items()}


@pytest.mark.parametrize("kind", mostly_nightly(["plain", "diffusers"], "plain"))
@pytest.mark.parametrize(("bits", "activations"), [(4, "per-timestep"), (8, "per-timestep"), (4, "per-token")])
def test_a_mixed_batch_has_the_gradients_of_a_loop_over_timesteps(kind: str, bits: int, activations: str) -> None:
    quantized, data = prepared(kind, weight_bits=bits, activation_bits=bits, activations=activations)
    count, rows = data.samples.shape[1], len(data.timesteps)
    mixed = torch.randperm(rows * count, generator=torch.Generator().manual_seed(0))
    together = gradients(quantized, data, [mixed])
    looped = gradients(quantized, data, list(torch.arange(rows * count).split(count)))
    tables = [n for n in together if n.startswith("quantizers.")]
    assert any(n.endswith("zero_point") for n in tables)
    assert any(n.endswith("log_scale") for n in tables)
    assert any(n.endswith("log_ratio") for n in tables) == (activations == "per-token")
    assert set(together) == set(looped)
    for name, gradient in together.items():
        scale = float(looped[name].abs().max()) or 1.0
        assert float((gradient - looped[name]).abs().max()) <= 1e-10 * scale, name


def test_each_row_gets_the_gradient_of_its_own_timestep_only() -> None:
    quantized, data = prepared("plain")
    count = data.samples.shape[1]
    alone = gradients(quantized, data, [torch.arange(count, 2 * count)])  # the second timestep
    for name, gradient in alone.items():
        if name.startswith("quantizers."):
            assert not gradient[[0, 2, 3]].any(), name


def test_a_static_table_is_one_row_for_all_timesteps() -> None:
    graph = captured(PlainUNet())
    data = trajectories(graph)
    quantized, _ = quantized_copy(graph, data, activations="static")
    for name, module in quantized.named_modules():
        if name.startswith("quantizers.") and not module.fixed:  # type: ignore[union-attr]
            assert module.log_scale.shape == (1, 1)  # type: ignore[union-attr]
            table = module.scale_table()  # type: ignore[operator]
            assert table.shape == (4,)
            assert len(table.unique()) == 1
            module.freeze()  # type: ignore[operator]
            assert torch.equal(module.scale_table(), table)  # type: ignore[operator]
            assert module.zero_point_table().shape == (4,)  # type: ignore[operator]


def test_without_zero_points_every_activation_is_symmetric() -> None:
    graph = captured(PlainUNet())
    quantized, _ = quantized_copy(graph, trajectories(graph), zero_points=False)
    tables = [m for n, m in quantized.named_modules() if n.startswith("quantizers.") and not m.fixed]  # type: ignore[union-attr]
    assert tables
    assert all(not m.zero_point_table().any() for m in tables)  # type: ignore[operator]
