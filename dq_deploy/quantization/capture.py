"""Any ``nn.Module(sample, timestep, **conditions)`` → a clean FX graph of ATen operators with a free batch dimension.

Working on the graph rather than on module classes is what lets one code path serve every architecture: a layer is an ATen node,
consumers of one tensor are the users of one node, and attention is two matrix products and a softmax whoever wrote it.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from ..errors import ArtifactError, UsageError

aten = torch.ops.aten
_PREFIX = "module."
_END = 2**63 - 1
_NESTED = "added_cond_kwargs"


class _Positional(nn.Module):
    """Calls ``module`` with named inputs given by position, and returns the output tensor itself."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = list(names)
        parameters = inspect.signature(module.forward).parameters
        # Inputs that diffusers hands over in a dict (SDXL's text_embeds and time_ids).
        self.nested = {name for name in self.names[1:] if name and name not in parameters} if _NESTED in parameters else set()

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        first, rest = tensors[0], tensors[1:]
        if self.names[1] == "":  # the module's own parameter has another name: pass the timestep by position
            output = self.module(first, rest[0], **dict(zip(self.names[2:], rest[1:], strict=True)))
        else:
            named: dict[str, Any] = dict(zip(self.names[1:], rest, strict=True))
            if self.nested:
                named[_NESTED] = {name: named.pop(name) for name in sorted(self.nested)}
            output = self.module(first, **named)
        return output if isinstance(output, torch.Tensor) else output[0]


def input_names(module: nn.Module, conditions: Sequence[str] = ()) -> list[str]:
    """Graph input names, in the order of the module's forward: its first parameter, ``timestep``, and the given conditions.

    Raises UsageError when a condition is no parameter of the forward.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        raise UsageError(f"{type(module).__name__}.forward takes {positional}: a diffusion model takes (sample, timestep, ...)")
    takes_any = _NESTED in positional or any(p.kind == p.VAR_KEYWORD for p in parameters)
    unknown = [c for c in conditions if c not in positional and not takes_any]
    if unknown:
        raise UsageError(f"{type(module).__name__}.forward takes no {', '.join(unknown)}; it takes {', '.join(positional)}")
    timestep = "timestep" if "timestep" in positional else positional[1]
    order = {name: index for index, name in enumerate(positional)}
    rest = sorted([timestep, *conditions], key=lambda name: order.get(name, len(order)))
    names = [positional[0], *rest]
    return ["timestep" if name == timestep else name for name in names]


def capture(module: nn.Module, inputs: dict[str, torch.Tensor]) -> GraphModule:
    """Capture ``module`` as a GraphModule whose placeholders are named as ``inputs``; every input's first dimension is the batch.

    ``inputs`` are example tensors in the forward's order (see ``input_names``), batch 2. The result holds the module's own parameters
    under their own names, and its nodes carry the module path in ``meta["path"]`` and the module class in ``meta["class"]``.

    Raises ArtifactError when the model cannot be captured or the captured graph is not the model (compared at batches 1 and 3).
    """
    module = module.eval()
    parameters = inspect.signature(module.forward).parameters
    names = list(inputs)
    call_names = ["" if name == "timestep" and "timestep" not in parameters else name for name in names]
    wrapper = _Positional(module, call_names)
    auto = torch.export.Dim.AUTO
    try:
        program = torch.export.export(
            wrapper, tuple(inputs.values()), dynamic_shapes={"tensors": tuple({0: auto} for _ in inputs)}, strict=False
        )
    except Exception as error:
        raise ArtifactError(
            f"torch.export cannot capture {type(module).__name__}: {type(error).__name__}: {str(error).splitlines()[0]}",
            "data-dependent control flow in the model's forward is the usual cause",
        ) from error
    graph_module = program.module()
    assert isinstance(graph_module, GraphModule)
    _name_nodes(graph_module, names)
    clean(graph_module)
    with torch.no_grad():
        _verify(wrapper, graph_module, list(inputs.values()))
    return _rehome(graph_module)


def _verify(wrapper: nn.Module, graph: nn.Module, tensors: list[torch.Tensor]) -> None:
    for batch in (1, 3):
        resized = [t[torch.arange(batch) % t.shape[0]] for t in tensors]
        try:
            expected, got = wrapper(*resized), graph(*resized)
        except (RuntimeError, AssertionError, IndexError) as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            raise ArtifactError(f"the model does not run at batch {batch}, after batch 2 was captured ({reason})") from error
        if not torch.isfinite(expected).all():
            raise ArtifactError("the model's output has NaN or Inf on random input", "check the model's weights")
        if expected.shape != got.shape or not torch.allclose(expected, got, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
            raise ArtifactError(
                f"the captured graph differs from the model at batch {batch}", "the forward's control flow depends on the batch size"
            )


def _name_nodes(graph_module: GraphModule, names: list[str]) -> None:
    """Name the placeholders and put every node's module path and class into its meta."""
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    for node, name in zip(placeholders, names, strict=True):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and isinstance(value.shape[0], int):
            raise ArtifactError(f"the model fixes the batch size of input '{name}' at {value.shape[0]}")
        node._rename(name)
        node.target = name
    for node in graph_module.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        frames = [(path.removeprefix("module").lstrip("."), kind) for path, kind in stack if path.startswith("module")]
        node.meta["path"] = frames[-1][0] if frames else ""
        node.meta["stack"] = [(path, str(kind).rsplit(".", 1)[-1]) for path, kind in frames]


def clean(graph_module: GraphModule) -> None:
    """Remove what computes nothing (guards, asserts, no-op casts, slices, divisions, dropout) and merge equal expressions.

    Merging matters: every ResNet block applies its own SiLU to the one time embedding, and only as one node can its consumers share
    one quantizer.
    """
    graph = graph_module.graph
    for node in reversed(list(graph.nodes)):
        is_check = node.op == "call_module" and str(node.target) == "_guards_fn"
        is_check |= node.op == "call_function" and "assert" in str(node.target)
        if is_check:
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.op == "call_function" and _is_noop(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target == aten.conv2d.padding:
            _number_padding(node)
        elif node.target == aten.einsum.default:
            _einsum_to_permute(node)
    _merge_equal(graph)
    graph.eliminate_dead_code()
    _size_from_first_input(graph)
    graph_module.recompile()


def _size_from_first_input(graph: Graph) -> None:
    """Take the batch size from the first input only, whichever input torch.export happened to take it from.

    ``timestep`` may have one element for the whole batch (the ``onnxruntime`` target), so its length must not count.
    """
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    for node in graph.nodes:
        if node.target == aten.sym_size.int and node.args[0] in inputs[1:] and node.args[1] == 0:
            node.args = (inputs[0], 0)


def _is_noop(node: Node) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return False
    before, after = source.meta.get("val"), node.meta.get("val")
    if node.target in (
        aten.to.dtype,
        aten.to.device,
        aten.to.dtype_layout,
        aten._to_copy.default,
        aten.contiguous.default,
        aten.clone.default,
    ):
        return isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor) and before.dtype == after.dtype
    if node.target in (aten.dropout.default, aten.feature_dropout.default):
        return node.args[2] is False
    if node.target in (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default):
        return True
    if node.target in (aten.div.Tensor, aten.mul.Tensor):
        return isinstance(node.args[1], int | float) and node.args[1] == 1 and getattr(before, "dtype", None) == getattr(after, "dtype", 0)
    if node.target == aten.slice.Tensor:
        start, end, step = [*node.args[2:], None, None, 1][:3] if len(node.args) < 5 else node.args[2:5]
        return (start in (None, 0)) and (end in (None, _END)) and step in (None, 1)
    return False


def _number_padding(node: Node) -> None:
    """``padding="same"`` or ``"valid"`` as numbers, where both sides get as much."""
    defaults: list[Any] = [None, [1, 1], "valid", [1, 1], 1]
    given: list[Any] = list(node.args)
    x, weight, bias, stride, padding, dilation, groups = given + defaults[len(given) - 2 :]
    kernel = weight.meta["val"].shape[2:]
    total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    if all(t % 2 == 0 for t in total):
        node.target = aten.conv2d.default
        node.args = (x, weight, bias, stride, [t // 2 for t in total], dilation, groups)


def _einsum_to_permute(node: Node) -> None:
    """An einsum that only reorders the axes of one tensor (a DiT puts its patches together with one) as the permutation that it is."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    before, _, after = equation.partition("->")
    assert isinstance(operands, list | tuple)
    if len(operands) == 1 and before.isalpha() and len(set(before)) == len(before) and sorted(before) == sorted(after):
        node.target = aten.permute.default
        node.args = (operands[0], [before.index(axis) for axis in after])
        node.kwargs = {}


def _merge_equal(graph: Graph) -> None:
    """Common subexpression elimination over pure ATen calls."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr") or "rand" in str(node.target) or "dropout" in str(node.target):
            continue
        key = (node.op, node.target, _freeze(node.args), _freeze(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node


def _freeze(value: Any) -> Any:
    if isinstance(value, Node):
        return ("node", value.name)
    if isinstance(value, list | tuple):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _freeze(v)) for k, v in value.items())
    return (type(value).__name__, repr(value))


def _rehome(graph_module: GraphModule) -> GraphModule:
    """Rebuild with plain calling conventions and the tensors under the user's own names (without the wrapper's prefix)."""
    root = nn.Module()
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in graph_module.graph.nodes:
        if node.op == "output":
            value = node.args[0]
            graph.output(copies[value[0] if isinstance(value, tuple | list) else value])
            break
        copy = copies[node] = graph.node_copy(node, lambda n: copies[n])
        if node.op == "get_attr":
            tensor = operator.attrgetter(str(node.target))(graph_module)
            copy.target = str(node.target).removeprefix(_PREFIX)
            set_tensor(root, copy.target, tensor.detach())
    return GraphModule(root, graph)


def set_tensor(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Register ``tensor`` as a buffer of ``root`` under a dotted name, creating the modules on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.register_buffer(leaf, tensor)


def decompose_attention(graph_module: GraphModule) -> None:
    """Replace scaled_dot_product_attention by matmul → softmax → matmul, so that both products can be quantized.

    softmax(q·kᵀ·scale + mask)·v, with q [..., L, E], k [..., S, E], v [..., S, Ev].
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target != aten.scaled_dot_product_attention.default:
            continue
        bound = _bind(node, ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"))
        if bound.get("is_causal") or bound.get("enable_gqa"):
            continue  # left as it is: the planner names it as a float layer with the reason
        with graph.inserting_before(node):
            _replace_attention(graph, node, bound)
    graph.eliminate_dead_code()
    graph_module.recompile()


def _replace_attention(graph: Graph, node: Node, bound: dict[str, Any]) -> None:
    query, key, value = bound["query"], bound["key"], bound["value"]
    scale = bound.get("scale") or float(query.meta["val"].shape[-1]) ** -0.5

    def emit(target: Callable[..., Any], *args: Any) -> Node:
        new = graph.call_function(target, args)
        new.meta = {"path": node.meta["path"], "stack": node.meta["stack"]}
        fake = [a.meta["val"] if isinstance(a, Node) else a for a in args]
        new.meta["val"] = target(*fake)
        return new

    transposed = emit(aten.transpose.int, key, -1, -2)
    scores = emit(aten.mul.Tensor, emit(aten.matmul.default, query, transposed), scale)
    mask = bound.get("attn_mask")
    if mask is not None:
        if mask.meta["val"].dtype == torch.bool:
            zero = emit(aten.mul.Tensor, scores, 0.0)
            mask = emit(aten.masked_fill.Scalar, zero, emit(aten.logical_not.default, mask), float("-inf"))
        scores = emit(aten.add.Tensor, scores, mask)
    probabilities = emit(aten.softmax.int, scores, -1)
    node.replace_all_uses_with(emit(aten.matmul.default, probabilities, value))
    graph.erase_node(node)


def _bind(node: Node, names: Sequence[str]) -> dict[str, Any]:
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}
