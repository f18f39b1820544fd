"""Leaving the products of attention, q·kᵀ and P·v, in float: a checkpoint's forward without their quantizers.

The same rewritten checkpoint is what the graph is exported from and what the exported bundle is judged against, so that both parity tests
hold as they do for a bundle with everything in INT8.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

from torch.fx import GraphModule, Node

from ..quantization.checkpoint import Checkpoint
from ..quantization.graph.edit import aten
from ..quantization.graph.insertion import decode
from ..quantization.weights import QuantizedMatmul

Attention = Literal["int8", "float"]
ATTENTION = ("int8", "float")
REASON = "export --attention float"


def float_attention(checkpoint: Checkpoint) -> Checkpoint:
    """A copy of the checkpoint in which every product of two activations takes them unquantized; its manifest says so too."""
    model = deepcopy(checkpoint.model)
    for node in list(model.graph.nodes):
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), QuantizedMatmul):
            _in_float(model, node)
    return rewritten(checkpoint, model, _details(checkpoint.artifact.manifest.details))


def rewritten(checkpoint: Checkpoint, model: GraphModule, details: dict[str, Any]) -> Checkpoint:
    """The checkpoint with another forward, without the quantizers that nothing reads in it, and with what its manifest then says."""
    model.graph.eliminate_dead_code()
    model.delete_all_unused_submodules()
    model.recompile()
    artifact = checkpoint.artifact
    manifest = artifact.manifest.model_copy(update={"details": details})
    return replace(checkpoint, artifact=replace(artifact, manifest=manifest), model=model)


def _in_float(model: GraphModule, node: Node) -> None:
    operands = []
    for quantizer in node.args:
        assert isinstance(quantizer, Node)
        operands.append(quantizer.args[0])
    with model.graph.inserting_before(node):
        product = model.graph.call_function(aten.matmul.default, tuple(operands))
    product.meta = {**node.meta, "layer": decode(str(node.target))}
    node.replace_all_uses_with(product)
    model.graph.erase_node(node)


def _details(details: dict[str, Any]) -> dict[str, Any]:
    """The manifest's details with those layers among the float ones, and without the quantizers that only they read."""
    layers = [layer for layer in details["layers"] if layer["op"] != "matmul"]
    moved = [layer for layer in details["layers"] if layer["op"] == "matmul"]
    used = {name for layer in layers for name in layer["quantizers"]}
    floats = [{"name": layer["name"], "op": layer["op"], "macs": layer["macs"], "reason": REASON} for layer in moved]
    total = sum(layer["macs"] for layer in [*details["layers"], *details["float_layers"]])
    left = [*details["float_layers"], *floats]
    return {
        **details,
        "layers": layers,
        "float_layers": left,
        "float_mac_share": sum(layer["macs"] for layer in left) / total if total else 0.0,
        "quantizers": [entry for entry in details["quantizers"] if entry["name"] in used],
    }
