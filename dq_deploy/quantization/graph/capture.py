"""Any ``nn.Module(sample, timestep, **conditions)`` → a clean FX graph of ATen operators with a free batch dimension.

Working on the graph rather than on module classes is what lets one code path serve every architecture: a layer is an ATen node,
consumers of one tensor are the users of one node, and attention is two matrix products and a softmax whoever wrote it.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from ...errors import ArtifactError, UsageError
from ...progress import Advance, Progress, silent
from ..calibration.recording import UNBATCHED
from .edit import set_tensor
from .rewrites import clean, normalize

_PREFIX = "module."
_NESTED = "added_cond_kwargs"
_BATCHES = (1, 3)  # that model and graph are compared at, captured at 2: their samples are the steps of the progress,
_EXPORT_STEPS = 4  # and torch.export counts as so many


class _Positional(nn.Module):
    """Calls ``module`` with named inputs given by position, and returns the output tensor itself."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = list(names)
        self.whole_timesteps = False
        parameters = inspect.signature(module.forward).parameters
        # Inputs that diffusers hands over in a dict (SDXL's text_embeds and time_ids).
        self.nested = {name for name in self.names[1:] if name and name not in parameters} if _NESTED in parameters else set()

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        first, *rest = tensors
        if self.whole_timesteps:
            at = self.names.index("timestep") - 1 if "timestep" in self.names else 0
            rest[at] = rest[at].round().long()
        if self.names[1] == "":  # the module's own parameter has another name: pass the timestep by position
            output = self.module(first, rest[0], **dict(zip(self.names[2:], rest[1:], strict=True)))
        else:
            named: dict[str, Any] = dict(zip(self.names[1:], rest, strict=True))
            named |= {name: named[name][0] for name in UNBATCHED if name in named and named[name].dim() == 3}
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
    known = [p.name for p in parameters]
    unknown = [c for c in conditions if c not in known and not takes_any]
    if unknown:
        raise UsageError(f"{type(module).__name__}.forward takes no {', '.join(unknown)}; it takes {', '.join(known)}")
    timestep = "timestep" if "timestep" in positional else positional[1]
    order = {name: index for index, name in enumerate(known)}
    rest = sorted([timestep, *conditions], key=lambda name: order.get(name, len(order)))
    names = [positional[0], *rest]
    return ["timestep" if name == timestep else name for name in names]


def capture(module: nn.Module, inputs: dict[str, torch.Tensor], progress: Progress = silent) -> GraphModule:
    """Capture ``module`` as a GraphModule whose placeholders are named as ``inputs``; every input's first dimension is the batch.

    ``inputs`` are example tensors in the forward's order (see ``input_names``), batch 2. The result holds the module's own parameters
    under their own names, and its nodes carry the module path in ``meta["path"]`` and the module class in ``meta["class"]``.

    Raises ArtifactError when the model cannot be captured or the captured graph is not the model (compared at batches 1 and 3).
    """
    with progress("capturing the model", 2 * sum(_BATCHES) + _EXPORT_STEPS) as advance:
        return _capture(module.eval(), inputs, advance)


def _capture(module: nn.Module, inputs: dict[str, torch.Tensor], advance: Advance) -> GraphModule:
    parameters = inspect.signature(module.forward).parameters
    names = list(inputs)
    call_names = ["" if name == "timestep" and "timestep" not in parameters else name for name in names]
    wrapper = _Positional(module, call_names)
    tensors = list(inputs.values())
    expected, problem = _expected(wrapper, tensors)
    advance(sum(_BATCHES), "exporting")
    graph_module = _functional(_export(wrapper, tensors)).module()
    assert isinstance(graph_module, GraphModule)
    _name_nodes(graph_module, names)
    if problem is not None:
        raise _fixed_batch(problem) from problem
    clean(graph_module)
    graph_module = _rehome(graph_module)
    with torch.no_grad():
        try:
            normalize(graph_module, tensors)
            advance(_EXPORT_STEPS, "comparing")
            got = {batch: graph_module(*_resized(tensors, batch)) for batch in expected}
        except (RuntimeError, AssertionError, IndexError) as error:
            raise _fixed_batch(error) from error
    for batch, output in expected.items():
        if output.shape != got[batch].shape or not torch.allclose(output, got[batch], rtol=1e-3, atol=1e-4 * float(output.abs().max())):
            raise ArtifactError(
                f"the captured graph differs from the model at batch {batch}", "the forward's control flow depends on the batch size"
            )
    advance(sum(_BATCHES), "compared")
    return graph_module


def _export(wrapper: _Positional, tensors: list[torch.Tensor]) -> torch.export.ExportedProgram:
    try:
        program = _exported(wrapper, tensors, torch.export.Dim.AUTO)
    except Exception as error:
        raise ArtifactError(
            f"torch.export cannot capture {type(wrapper.module).__name__}: {type(error).__name__}: {str(error).splitlines()[0]}",
            "data-dependent control flow in the model's forward is the usual cause",
        ) from error
    if len(_batches(program)) > 1:  # it found no reason why the inputs' batches should be one, and what joins them has sizes of its own
        with suppress(Exception):  # what it is joined by may forbid a name for it; then it stays as it was found
            program = _exported(wrapper, tensors, torch.export.Dim("batch"))
    return program


def _exported(wrapper: _Positional, tensors: list[torch.Tensor], batch: Any) -> torch.export.ExportedProgram:
    # Without gradients: a model that turns them off for a part (checkpointing does) would become a graph with a graph in it.
    with torch.no_grad(), _no_fused_attention():
        return torch.export.export(wrapper, tuple(tensors), dynamic_shapes={"tensors": tuple({0: batch} for _ in tensors)}, strict=False)


def _batches(program: torch.export.ExportedProgram) -> set[str]:
    """Symbols of the user inputs' first dimensions."""
    inputs = set(program.graph_signature.user_inputs)
    return {str(n.meta["val"].shape[0]) for n in program.graph.nodes if n.op == "placeholder" and n.name in inputs}


@contextmanager
def _no_fused_attention() -> Iterator[None]:
    """Without the fused operators that ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` are in evaluation mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without operators that change their operands in place (``h += x``, ``SiLU(inplace=True)``): no node may depend on the order."""
    changes = any(getattr(getattr(n.target, "_schema", None), "is_mutable", False) for n in program.graph.nodes)
    return program.run_decompositions({}) if changes else program


def _resized(tensors: Iterable[torch.Tensor], batch: int) -> list[torch.Tensor]:
    """A batch of other size from the same samples, in turn."""
    return [t[torch.arange(batch) % t.shape[0]] for t in tensors]


@torch.no_grad()
def _expected(wrapper: _Positional, tensors: list[torch.Tensor]) -> tuple[dict[int, torch.Tensor], Exception | None]:
    """The model's outputs at batches that it is not captured with, or the reason why there are none.

    Timesteps are given as floats, and as integers to a model that fails with floats (it looks them up in a table).
    Raises ArtifactError when an output has NaN or Inf.
    """
    problem: Exception | None = None
    for wrapper.whole_timesteps in (False, True):
        try:
            found = {batch: wrapper(*_resized(tensors, batch)) for batch in _BATCHES}
        except (RuntimeError, AssertionError, IndexError, TypeError) as error:
            problem = problem or error
            continue
        if not all(bool(torch.isfinite(output).all()) for output in found.values()):
            raise ArtifactError("the model's output has NaN or Inf on random input", "check the model's weights")
        return found, None
    wrapper.whole_timesteps = False
    return {}, problem


def _fixed_batch(error: Exception) -> ArtifactError:
    reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ArtifactError(f"the model does not run at batches 1 and 3, after batch 2 was captured ({reason})")


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
            if not isinstance(tensor, torch.Tensor):
                raise ArtifactError(f"the captured model has control flow in it ({node.target}), which no integer graph can hold")
            copy.target = str(node.target).removeprefix(_PREFIX)
            set_tensor(root, copy.target, tensor.detach())
    return GraphModule(root, graph)
