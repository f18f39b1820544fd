"""Where graphs are cut, and why others are not."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
import torch

from dq_deploy.engines.step_cache.cut import Cut, find_cut
from dq_deploy.engines.step_cache.flow import Flow
from dq_deploy.errors import UsageError
from dq_deploy.exporters.skeleton import DOMAIN, to_onnx
from tests.families.family import randomized, seeded
from tests.tiny import captured, planned
from tests.tiny_pipelines import tiny_stable_diffusion_3

BLOCK = """
    scaled{0} = Mul (h{0}, gain)
    "blocks.{0}.one/MatMul" inner{0} = MatMul (scaled{0}, w)
    active{0} = Relu (inner{0})
    "blocks.{0}.two/MatMul" branch{0} = MatMul (active{0}, w)
    h{1} = Add (h{0}, branch{0})"""
HEADER = """<ir_version: 10, opset_import: ["": 21]>
network (float[N, 4, 8] sample, float[N] timestep) => (float[N, 4, 8] out_sample) <float[8, 8] w, float[8] gain>
{{
    embedded = MatMul (sample, w)
    sized = Shape (sample)
    h0 = Add (embedded, gain){blocks}
    {tail}
}}"""
TAIL = "normed = Mul (h3, gain) out_sample = MatMul (normed, w)"


def flow(blocks: str, tail: str = TAIL) -> Flow:
    """A network of named products; its names are those before the nodes in quotes."""
    text = HEADER.format(blocks=blocks, tail=tail)
    names: dict[str, str] = {}
    lines = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith('"'):
            name, rest = stripped[1:].split('"', 1)
            names[rest.strip().partition(" ")[0]] = name
            line = rest  # noqa: PLW2901
        lines.append(line)
    model = onnx.parser.parse_model("\n".join(lines))
    for node in model.graph.node:
        node.name = names.get(node.output[0], "")
    del model.graph.value_info[:]
    for name in ("w", "gain"):
        shape = [8, 8] if name == "w" else [8]
        model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, shape, [0.5] * (64 if name == "w" else 8)))
    found = onnx.shape_inference.infer_shapes(model)
    return Flow(ir.from_proto(found).graph)


def names(cut: Cut) -> tuple[str | None, str | None, str | None]:
    return cut.entry.name, cut.first.name, cut.last.name


def chain(count: int) -> str:
    return "".join(BLOCK.format(index, index + 1) for index in range(count))


def refused(graph: Flow) -> str:
    with pytest.raises(UsageError) as caught:
        find_cut(graph)
    assert caught.value.hint == "sample without --cache"
    return caught.value.message


def test_a_chain_of_residual_blocks() -> None:
    cut = find_cut(flow(chain(3)))
    assert names(cut) == ("h0", "h1", "h3")
    assert (cut.residual, cut.where, cut.kept) == (True, "blocks.0", None)


def test_a_tail_that_reads_what_came_before_the_blocks() -> None:
    """It does not depend on what is skipped, so the head hands it over."""
    assert names(find_cut(flow(chain(3), "normed = Mul (h3, embedded) out_sample = MatMul (normed, w)"))) == ("h0", "h1", "h3")


def test_a_tail_that_reads_two_blocks_begins_where_they_meet() -> None:
    cut = find_cut(flow(chain(3), "both = Add (h3, h2) out_sample = MatMul (both, w)"))
    assert names(cut) == ("h0", "h1", "both")


def test_of_text_and_picture_side_by_side_the_picture_is_what_counts() -> None:
    """Stable Diffusion 3, with as many tokens of each: only where they come from tells them apart."""
    model = randomized(tiny_stable_diffusion_3().transformer)
    conditions = {"encoder_hidden_states": seeded(2, 16, 32), "pooled_projections": seeded(2, 32)}
    graph = captured(model, (4, 8, 8), **conditions)
    examples = {name: torch.randn(2, 4, 8, 8) if name == "hidden_states" else conditions.get(name, torch.tensor([1.0, 2.0])) for name in
                (node.target for node in graph.graph.nodes if node.op == "placeholder")}  # fmt: skip
    exported = to_onnx(graph, examples, {layer.node.name: layer.name for layer in planned(graph).layers})
    for node in exported.graph:
        if node.domain == DOMAIN:  # what stands for a layer until it is lowered
            node.name, node.op_type = f"{node.attributes['name'].as_string()}/{node.op_type}", "MatMul"
    found = Flow(exported.graph)
    cut = find_cut(found)
    assert (cut.where, cut.residual) == ("transformer_blocks.0", True)
    assert [str(value.shape) for value in (cut.entry, cut.first, cut.last)] == ["[batch,16,32]"] * 3
    text, picture = found.downstream(values={exported.graph.inputs[1]}), found.downstream(values={exported.graph.inputs[0]})
    assert cut.entry.producer() in picture
    assert cut.entry.producer() not in text


def test_blocks_that_go_on_at_another_shape() -> None:
    """As where text joins the tokens of the picture behind the first block, and does not leave them."""
    wider = chain(1) + "\n    wide = Concat <axis = 1> (h1, h1)" + chain(3)[len(chain(1)) :].replace("h1", "wide")
    assert "takes no single value of the shape that blocks.0 gives, [N, 4, 8]" in refused(flow(wider))


def test_a_block_without_a_residual() -> None:
    assert "blocks.0 is no residual block" in refused(flow(chain(3).replace("h1 = Add (h0, branch0)", "h1 = Relu (branch0)")))


def test_a_network_without_named_blocks_and_one_of_a_single_block() -> None:
    for graph in (flow(chain(3).replace("blocks.", "blocks")), flow(chain(1), TAIL.replace("h3", "h1"))):
        assert "its products are named after no chain of blocks" in refused(graph)
