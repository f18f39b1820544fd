"""Constants, names and shapes of the nodes that the exporters write."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dq_deploy.exporters.emitter import FP32_MARK, Emitter, number


def graph() -> ir.Graph:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 3]))
    return ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="graph")


def test_a_number_becomes_an_initializer_where_it_is_first_read() -> None:
    made, half = graph(), number("half", np.float32(0.5))
    emit = Emitter(made, "a")
    assert not made.initializers
    y = emit.op("Mul", [made.inputs[0], half])
    assert list(made.initializers) == ["half"]
    z = Emitter(made, "b").op("Mul", [y, number("half", np.float32(0.5))])
    assert [node.inputs[1] for node in made] == [made.initializers["half"]] * 2
    Emitter(made, "c").op("Mul", [z, number("half", np.float32(0.25))])  # another one of that name
    assert list(made.initializers) == ["half", "half#"]


def test_a_constant_is_told_apart_by_type_shape_and_bytes() -> None:
    made = graph()
    emit = Emitter(made, "a")
    first = emit.constant("c", np.zeros(2, np.float32))
    assert emit.constant("c", np.zeros(2, np.float32)) is first
    others = [np.zeros(2, np.int32), np.zeros((2, 1), np.float32), np.array([0.0, -0.0], np.float32)]
    assert len({first, *(emit.constant("c", other) for other in others)}) == 4


def test_a_product_of_constants_is_one() -> None:
    made = graph()
    emit = Emitter(made, "a")
    both = emit.product(number("two", np.float32(2)), number("three", np.float32(3)), "both")
    assert (both.name, both.const_value.numpy() if both.const_value else None) == ("a.both", 6)
    assert not list(made)
    assert emit.product(made.inputs[0], both, "scaled").producer() is not None
    assert list(made.initializers) == ["a.both"]


def test_what_is_known_to_have_another_shape_than_n_broadcasts_as_it_is() -> None:
    made = graph()
    emit = Emitter(made, "a")
    rows = emit.op("ReduceSum", [made.inputs[0]])
    shaped = emit.unsqueeze(rows, 4, "rows")
    assert (shaped.producer() or rows.producer()).op_type == "Unsqueeze"  # type: ignore[union-attr]
    tokens = ir.Value(name="t", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 5, 1]))
    constant = number("c", np.float32(1))
    assert emit.unsqueeze(tokens, 3, "tokens") is tokens
    assert emit.unsqueeze(constant, 4, "constant") is constant


def test_nodes_stand_where_they_are_wanted_with_names_and_marks() -> None:
    made = graph()
    last = Emitter(made, "last").op("Relu", [made.inputs[0]]).producer()
    assert last is not None
    before = Emitter(made, "before", last, fp32=False)
    first = before.op("Neg", [made.inputs[0]], name="first")
    before.op("Abs", [first])
    after = Emitter(made, "after", after=last)
    after.op("Neg", [last.outputs[0]])
    after.op("Abs", [last.outputs[0]])
    assert [node.name for node in made] == ["before/first", "before/Abs", "last/Relu", "after/Neg", "after/Abs"]
    assert [FP32_MARK in node.metadata_props for node in made] == [False, False, True, True, True]
    assert first.name == "before/first:0"
