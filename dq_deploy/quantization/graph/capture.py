"""Any ``nn.Module(sample, timestep, **conditions)`` → a clean FX graph of ATen operators with a free batch dimension.

Working on the graph rather than on module classes is what lets one code path serve every architecture: a layer is an ATen node,
consumers of one tensor are the users of one node, and attention is two matrix products and a softmax whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from ...errors import ArtifactError, raise_if_out_of_memory
from ...progress import Advance, Progress, silent
from ..calling import CallForm
from ..running.ambient import default_torch, without_autocast
from .computed_positions import positions_that_export
from .edit import aten, bind
from .exporting import (
    BoundToBatchError,
    NoSymbolError,
    check_names,
    described,
    exported,
    exported_as_is,
    names_that_are_keywords,
    source_line,
)
from .fixed_batch import freed
from .free_sizes import FreeSize, free_sizes, with_multiples
from .own_names import name_nodes, rehome
from .positional import BATCHES, Positional, does_not_run, expected_outputs, shown
from .rewrites import clean, normalize
from .rewrites.attention import ATTENTION
from .shapes import resized

_LARGE = 32  # batches above are not tried: diffusers' upsamplers have a branch at 64, for memory, which changes no value
_EXPORT_STEPS = 4  # torch.export's of the progress, whose others are the samples that model and graph are compared at


def capture(
    module: nn.Module, inputs: dict[str, torch.Tensor], progress: Progress = silent, *, form: CallForm | None = None,
    others: Sequence[dict[str, torch.Tensor]] = (),
) -> GraphModule:  # fmt: skip
    """Capture ``module`` as a GraphModule whose placeholders are named as ``inputs``; every input's first dimension is the batch.

    ``others`` are examples at other sizes: the dimensions in which they differ are free then (``free_sizes``), and the graph is compared
    with the model at each; its ``meta["free"]`` has the ``FreeSize``s by name.

    ``inputs`` are example tensors [2, ...] in the forward's order (see ``input_names``), and ``form`` is how the module is called with
    them, where that is not each under its own name. The result holds the module's own parameters
    under their own names, and its nodes carry the module path in ``meta["path"]`` and the module class in ``meta["class"]``. Its own
    ``meta["output"]`` is the ``OutputForm``: several tensors are side by side in the graph's one output.

    Raises ArtifactError when the model cannot be captured or the captured graph is not the model (compared at batches 1 and 3), and where
    the model fixes a size that is to be free.
    """
    check_names(module)
    sizes = free_sizes(inputs, others)
    if any(tensor.is_inference() for tensor in module.state_dict().values()):  # made in inference mode: torch.export takes no such tensors
        with torch.inference_mode(mode=False):
            module = deepcopy(module)
    steps = 2 * sum(BATCHES) + _EXPORT_STEPS
    with (
        progress("capturing the model", steps) as advance, default_torch(), names_that_are_keywords(), positions_that_export(module)
    ):  # fmt: skip
        graph_module = _captured(module.eval(), [inputs, *others], form or CallForm.plain(module, list(inputs)), advance, sizes)
    graph_module.meta["free"] = with_multiples(graph_module, inputs, sizes)
    return graph_module


class _FixedSizeError(ArtifactError):
    """A model that fixes a size that is to be free."""


def _captured(module: nn.Module, examples: Sequence[dict[str, torch.Tensor]], form: CallForm, advance: Advance,
              sizes: Mapping[str, FreeSize]) -> GraphModule:  # fmt: skip
    """The graph from the first of the examples, or else from another: a network may have a table for its own size, and compute others."""
    fixed: _FixedSizeError | None = None
    for index, inputs in enumerate(examples):
        try:
            return _capture(module, inputs, form, advance, (sizes, [*examples[:index], *examples[index + 1 :]]))
        except _FixedSizeError as error:
            fixed = fixed or error
    assert fixed is not None
    raise fixed


_Sizes = tuple[Mapping[str, FreeSize], Sequence[dict[str, torch.Tensor]]]
"""What is free, and examples at other sizes than that of the capture."""


def _capture(module: nn.Module, inputs: dict[str, torch.Tensor], form: CallForm, advance: Advance, sizes: _Sizes) -> GraphModule:
    names = list(inputs)
    wrapper = Positional(module, names, form)
    tensors = list(inputs.values())
    with without_autocast() as entered:
        expected, problem = expected_outputs(wrapper, tensors)
        if problem is None:
            return _compared(wrapper, names, tensors, expected, advance, sizes)
    if entered:  # types that only autocast brings together
        expected, problem = expected_outputs(wrapper, tensors)
    if problem is not None:
        raise does_not_run(wrapper, names, tensors, problem) from problem
    return _compared(wrapper, names, tensors, expected, advance, sizes)


def _compared(wrapper: Positional, names: list[str], tensors: list[torch.Tensor], expected: dict[int, torch.Tensor],
              advance: Advance, sizes: _Sizes) -> GraphModule:  # fmt: skip
    """The model's graph, which gives what was ``expected`` at every batch, and what the model gives at other sizes."""
    advance(sum(BATCHES), "exporting")
    if sizes[1]:
        graph_module = _of_free_sizes(wrapper, names, tensors, expected, sizes)
        return _noted(wrapper, graph_module, expected, advance)
    try:
        raw = exported(wrapper, tensors)
        graph_module = _normalized(wrapper, raw, names, tensors, expected)
        _check_beyond(wrapper, graph_module, tensors, raw.meta.get("largest_batch", _LARGE))
    except (BoundToBatchError, NoSymbolError) as first:
        try:
            small, large = (exported_as_is(wrapper, resized(tensors, len(tensors[0]) + more)) for more in (0, 1))
        except ArtifactError as second:  # sizes that are numbers do not help it
            raise (first if isinstance(first, NoSymbolError) else second) from second
        try:
            graph_module = _normalized(wrapper, freed(small, large, tensors), names, tensors, expected)
        except (BoundToBatchError, RuntimeError, AssertionError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise_if_out_of_memory(error)
            raise ArtifactError(
                f"the graph, and not the model, is bound to the batch that it was captured at, and what binds it was not found: {error}"
            ) from error
    return _noted(wrapper, graph_module, expected, advance)


def _noted(wrapper: Positional, graph_module: GraphModule, expected: dict[int, torch.Tensor], advance: Advance) -> GraphModule:
    """With what was seen of the model beside its graph."""
    advance(_EXPORT_STEPS + sum(BATCHES), "compared")
    graph_module.meta["output"] = wrapper.returns
    graph_module.meta["in_company"] = _in_company(expected)
    return graph_module


def _of_free_sizes(wrapper: Positional, names: list[str], tensors: list[torch.Tensor], expected: dict[int, torch.Tensor],
                   sizes: _Sizes) -> GraphModule:  # fmt: skip
    """The model's graph whose sizes are free. Raises ArtifactError where the model fixes one, with its reason."""
    free, others = sizes
    elsewhere = [(example, _at_another_size(wrapper, example)) for example in others]
    axes = [[dim for size in free.values() for input_, dim in size.axes if input_ == name] for name in names]
    try:
        raw = exported(wrapper, tensors, axes)
        _check_free(raw, names, axes)
        graph_module = _normalized(wrapper, raw, names, tensors, expected)
        _check_beyond(wrapper, graph_module, tensors, raw.meta.get("largest_batch", _LARGE))
    except (BoundToBatchError, NoSymbolError) as error:
        what = error.message if isinstance(error, ArtifactError) else str(error)
        raise _FixedSizeError(
            f"{type(wrapper.module).__name__} cannot be captured with {' and '.join(free)} free: {what}",
            "take sizes, the batch's too, from x.shape and leave them whole (no len, int, list or range of them); "
            f"or leave {_option(free)} out",
        ) from error
    for example, output in elsewhere:
        last = _Last(graph_module)
        try:
            with torch.no_grad():
                got = last.run(*example.values())
        except (RuntimeError, AssertionError, IndexError) as error:
            raise_if_out_of_memory(error)
            where = source_line(last.node) if last.node else ""
            raise _fixed(wrapper, free, f"its graph does not run on {shown(example)}: {str(error).splitlines()[0]}{where}") from error
        if not _equal(output, got):
            raise _fixed(wrapper, free, f"its graph gives other values than it does for {shown(example)}")
    return graph_module


class _Last(Interpreter):
    """Runs a graph, and knows the node that it came to."""

    node: Node | None = None

    def run_node(self, n: Node) -> Any:
        self.node = n
        return super().run_node(n)


@torch.no_grad()
def _at_another_size(wrapper: Positional, example: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model gives there. Raises ArtifactError where it gives nothing."""
    try:
        output: torch.Tensor = wrapper(*example.values())
        batch = len(next(iter(example.values())))
        if len(output) != batch:
            raise ValueError(f"it gives {len(output)} samples for {batch}")
        return output
    except Exception as error:  # as many kinds as there are models
        raise_if_out_of_memory(error)
        raise ArtifactError(
            f"{type(wrapper.module).__name__} does not run on {shown(example)}: {described(error)}",
            "a network that halves its sample takes sizes that can be halved as often; one that fixes its size has one: leave --sizes and "
            "--tokens out, and quantize it once for each",
        ) from error


def _check_free(raw: GraphModule, names: Sequence[str], axes: Sequence[Sequence[int]]) -> None:
    """Raises BoundToBatchError where torch.export found that a dimension can have one size only."""
    placeholders = raw.graph.find_nodes(op="placeholder")
    for node, name, dims in zip(placeholders, names, axes, strict=True):
        for dim in dims:
            if isinstance(size := node.meta["val"].shape[dim], int):
                raise BoundToBatchError(f"a condition in its own code holds for dimension {dim} of '{name}' being {size}, and for no other")


def _option(free: Mapping[str, FreeSize]) -> str:
    """What asked for these sizes."""
    return "--tokens" if set(free) == {"tokens"} else "--sizes"


def _fixed(wrapper: Positional, free: Mapping[str, FreeSize], why: str) -> _FixedSizeError:
    return _FixedSizeError(
        f"{type(wrapper.module).__name__} fixes {' and '.join(free)}, which {_option(free)} is to leave free: {why}",
        f"leave {_option(free)} out, and quantize it once for each size. A network fixes none where it takes them from x.shape and "
        "computes its positions with torch; a graph halves only what can be halved as often",
    )


def _normalized(wrapper: Positional, graph_module: GraphModule, names: list[str], tensors: list[torch.Tensor],
                expected: dict[int, torch.Tensor]) -> GraphModule:  # fmt: skip
    """A captured graph in the planner's words, compared with the model. Raises BoundToBatchError and ArtifactError."""
    name_nodes(graph_module, names)
    clean(graph_module)
    _refuse_chance(graph_module)
    graph_module = rehome(graph_module)
    with torch.no_grad():
        try:
            normalize(graph_module, tensors)
            got = {batch: graph_module.forward(*resized(tensors, batch)) for batch in expected}
        except (RuntimeError, AssertionError, IndexError) as error:
            raise_if_out_of_memory(error)
            raise BoundToBatchError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        different = [batch for batch, output in expected.items() if not _equal(output, got[batch])]
        if different:
            own = wrapper(*tensors)
            if not _equal(own, wrapper(*tensors)):
                raise ArtifactError("the model gives another output every time for the same input", "a graph gives the same one always")
            if not _equal(own, graph_module(*tensors)):
                raise ArtifactError("the captured graph does not compute what the model does, and why is not known", "please report it")
            raise BoundToBatchError(f"it gives other values than the model at batch {different[0]}")
    return graph_module


def _equal(output: torch.Tensor, got: torch.Tensor) -> bool:
    return output.shape == got.shape and torch.allclose(output, got, rtol=1e-3, atol=1e-4 * float(output.abs().max()))


_RECURRENT = (aten.gru.input, aten.lstm.input, aten.rnn_tanh.input, aten.rnn_relu.input)


def _refuse_chance(graph_module: GraphModule) -> None:
    """Raises ArtifactError for a graph that draws random numbers, and for recurrent layers, which torch takes for such."""
    for node in graph_module.graph.nodes:
        if node.target in _RECURRENT:
            raise ArtifactError(
                f"the model has a recurrent layer ({node.target}){source_line(node)}, which has no integer form here",
                "convolutions or attention along the sequence in its place have one",
            )
        certain = node.target == aten.scaled_dot_product_attention.default and not bind(node, ATTENTION).get("dropout_p")
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not certain:
            raise ArtifactError(
                f"the model draws random numbers in its forward ({node.target}){source_line(node)}",
                "a graph gives the same output for the same input: hand the noise over as a condition, or leave it out in evaluation mode",
            )


@torch.no_grad()
def _check_beyond(wrapper: Positional, graph_module: GraphModule, tensors: list[torch.Tensor], largest: int) -> None:
    """Raise ArtifactError where the model has another branch for batches above ``largest``, as far as it is small enough to be tried."""
    if largest >= _LARGE:
        return
    inputs = resized(tensors, largest + 1)
    if not _equal(wrapper(*inputs), graph_module.forward(*inputs)):
        raise ArtifactError(
            f"the model computes something else for batches above {largest}, and a graph has one branch",
            "let the forward do the same at every batch",
        )


def _in_company(found: dict[int, torch.Tensor]) -> tuple[float, float]:
    """How much a sample's output differs alone and beside two others, and its largest value."""
    alone, together = found[1][:1], found[3][:1]
    return float((alone - together).abs().max()), float(alone.abs().max())


def check_alone(graph_module: GraphModule) -> None:
    """Raise ArtifactError where a sample's output is another one in company: runners part a batch by timesteps, pipelines stack halves."""
    difference, largest = graph_module.meta["in_company"]
    if difference > 1e-3 * max(largest, 1e-6):
        raise ArtifactError(
            "the model mixes the samples of a batch: "
            f"the output for one sample alone and beside two others differs by {difference:.2g} of {largest:.2g}",
            "take statistics over a sample's own values (x.std(dim=(1, 2, 3), keepdim=True), not x.std())",
        )
