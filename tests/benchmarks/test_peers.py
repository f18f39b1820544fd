"""What outside tools are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from benchmarks.accuracy.models import load_reference
from benchmarks.accuracy.peers import _fold_constants, _phases, first_products, torchao_denoiser
from dq_deploy.decibels import snr_db

pytest.importorskip("openvino")


def test_the_timesteps_sines_and_cosines_are_what_no_weight_has_met() -> None:
    import openvino
    from openvino import opset13 as ops

    sample, timestep = (ops.parameter([2, 4], np.float32, name=name) for name in ("sample", "timestep"))
    sample.output(0).set_names({"sample"})
    timestep.output(0).set_names({"timestep"})
    halved = ops.multiply(sample, np.float32(0.5), name="halved")
    phases = ops.multiply(timestep, np.float32([1, 0.1, 0.01, 0.001]), name="phases")
    waves = ops.concat([ops.sin(phases, name="sine"), ops.cos(phases, name="cosine")], axis=1, name="waves")
    embedded = ops.matmul(waves, np.ones((8, 4), np.float32), False, False, name="product")
    model = openvino.Model([ops.add(halved, embedded, name="sum")], [sample, timestep])

    assert set(_phases(model)) == {"phases", "sine", "cosine", "waves"}


def test_the_first_products_see_the_sample_through_a_concatenation(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    text = """<ir_version: 10, opset_import: ["" : 20]>
    whole (float[1, 1, 4, 4] x, float[1, 1, 4, 4] low, float[2, 2, 1, 1] w, float[2, 2, 1, 1] v) => (float[1, 2, 4, 4] y) {
        both = Concat <axis = 1> (x, low)
        first = Conv (both, w)
        size = Shape (x)
        same = Reshape (first, size)
        y = Conv (same, v)
    }"""
    model = onnx.parser.parse_model(text)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}{index}"
    onnx.save(model, file)
    assert first_products(file, "x") == ["Conv1"]


def test_a_weight_that_is_computed_is_a_constant_when_folded() -> None:
    import openvino
    from openvino import opset13 as ops

    sample = ops.parameter([2, 4], np.float32, name="sample")
    weight = ops.multiply(ops.constant(np.ones((4, 4), np.float32)), ops.constant(np.float32(0.5)))
    model = openvino.Model([ops.matmul(sample, weight, False, False)], [sample])
    _fold_constants(model)
    product = next(op for op in model.get_ordered_ops() if op.get_type_name() == "MatMul")
    assert product.input_value(1).get_node().get_type_name() == "Constant"


@torch.no_grad()
def test_torchaos_linear_layers_are_integers_and_the_reference_stays_float() -> None:
    pytest.importorskip("torchao")
    reference = load_reference("builtin:fashion-mnist-dit")
    inputs = torch.randn(2, *reference.source.sample_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0, 20.0])
    expected = reference(*inputs, **reference.conditions(range(2)))
    quantized = torchao_denoiser(reference)
    assert 30 < snr_db(expected, quantized(*inputs, **reference.conditions(range(2)))) < 60
    torch.testing.assert_close(reference(*inputs, **reference.conditions(range(2))), expected)
