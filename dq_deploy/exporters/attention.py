"""Leaving the products of attention, q·kᵀ and P·v, in float: a checkpoint's forward without their quantizers.

The same rewritten checkpoint is what a graph is exported from and what the exported bundle is judged against, so that both parity tests
hold as they do for a bundle with everything in INT8. "auto" quantizes them; an engine that has a fused kernel for float ones takes these
when it is built (engines/tensorrt/fused_attention.py), and is judged by the forward without their quantizers.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

from torch.fx import GraphModule, Node

from ..errors import ArtifactError
from ..quantization.checkpoint import Checkpoint
from ..quantization.graph.edit import aten
from ..quantization.graph.insertion import decode
from ..quantization.graph.low_rank import SUFFIXES as BRANCHES
from ..quantization.graph.modules import layer_calls
from ..quantization.weights import QuantizedMatmul

Attention = Literal["auto", "int8", "float"]
ATTENTION = ("auto", "int8", "float")
REASON = "export --attention float"


def float_attention(checkpoint: Checkpoint, names: Collection[str] | None = None) -> Checkpoint:
    """A copy of the checkpoint in which products of two activations take them unquantized; its manifest says so too.

    ``names`` are their layers, None for all. Raises ArtifactError for a name that is not such a layer's.
    """
    model, there = deepcopy(checkpoint.model), []
    for node, layer in layer_calls(model):
        if isinstance(layer, QuantizedMatmul):
            there.append(decode(str(node.target)))
            if names is None or there[-1] in names:
                _in_float(model, node)
    if unknown := sorted(set(names or ()) - set(there)):
        raise ArtifactError(f"the checkpoint has no quantized product {', '.join(unknown[:5])}", "build the engine again")
    return rewritten(checkpoint, model, _details(checkpoint.artifact.manifest.details, there if names is None else names))


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


def _details(details: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The manifest's details with those layers among the float ones, and without the quantizers that only they read."""
    layers = [layer for layer in details["layers"] if layer["name"] not in names]
    moved = [layer for layer in details["layers"] if layer["name"] in names]
    used = {name for layer in layers for name in layer["quantizers"]}
    floats = [{"name": layer["name"], "op": layer["op"], "macs": layer["macs"], "reason": REASON} for layer in moved]
    left = [*details["float_layers"], *floats]
    counted = [layer["macs"] for layer in left if not layer["name"].endswith(BRANCHES)]  # which are float by design
    total = sum(layer["macs"] for layer in layers) + sum(counted)
    return {
        **details,
        "layers": layers,
        "float_layers": left,
        "float_mac_share": sum(counted) / total if total else 0.0,
        "quantizers": [entry for entry in details["quantizers"] if entry["name"] in used],
    }
