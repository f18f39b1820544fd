"""torch.export of a model, and the cause in torch's words and the model's line where it fails."""

from __future__ import annotations

import keyword
import operator
import re
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx import GraphModule, Node
from torch.fx import graph as fx_graph
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ...errors import ArtifactError, causes, raise_if_out_of_memory
from .known_values import Given, known_values
from .regions import inline_regions

_BY_VALUE = (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException)
_OURS = (Path(torch.__file__).parent, Path(__file__).parents[2])


class NoSymbolError(ArtifactError):
    """A model that torch.export cannot capture while the batch size is a symbol, for another reason than its inputs' values.

    ``np.sqrt(a.numel() / b.numel())`` and ``len(set(sizes))`` take numbers only, whether what they give depends on the batch or not.
    """


class BoundToBatchError(Exception):
    """A captured graph does not do at other batches what the model does."""


def exported(wrapper: nn.Module, tensors: Sequence[torch.Tensor], free: Sequence[Collection[int]] = ()) -> GraphModule:
    """The graph of ``wrapper(*tensors)``, of whatever sizes N of the inputs [N, ...] torch.export finds it to be.

    ``free`` are the further dimensions of each input that may have any size.

    ``meta["largest_batch"]`` is the largest that it holds for, as the model's own conditions on the size have it; without: any.
    Raises ArtifactError when it cannot be captured, and NoSymbolError where sizes that are numbers may do.
    """
    with _explained(wrapper, NoSymbolError):
        program = _program(wrapper, tensors, torch.export.Dim.AUTO, free)
        if len(_batches(program)) > 1:  # it found no reason why the inputs' batches should be one, and what joins them has sizes of its own
            with suppress(Exception):  # what it is joined by may forbid a name for it; then it stays as it was found
                program = _program(wrapper, tensors, torch.export.Dim("batch"), free)
        module = _module(program)
        batches = _batches(program)
        ranges = [found for symbol, found in program.range_constraints.items() if not free or str(symbol) in batches]
        bounds = [int(found.upper) for found in ranges if str(found.upper).isdecimal()]  # not infinity
        return _noted(module, min(bounds, default=None))


def _noted(module: GraphModule, largest: int | None) -> GraphModule:
    if largest is not None:
        module.meta["largest_batch"] = largest
    return module


def exported_as_is(wrapper: nn.Module, tensors: Sequence[torch.Tensor]) -> GraphModule:
    """The graph of ``wrapper(*tensors)`` at the very sizes of the tensors [N, ...]. Raises ArtifactError when it cannot be captured."""
    with _explained(wrapper):
        return _module(_program(wrapper, tensors, None))


def described(error: BaseException) -> str:
    """An error's type, its whole message and the model's own line that it came from."""
    place = _raised_at(error)
    return f"{type(error).__name__}: {str(error).strip()}" + (f"\nat {place}" if place else "")


def source_line(node: Node) -> str:
    """The line of the model's source that made a captured node, in words; nothing where torch did not keep it."""
    found = re.findall(r'File "(.+?)", line (\d+), in (\S+)\n +(.+)', str(node.meta.get("stack_trace") or ""))
    own = [frame for frame in found if not _ours(Path(frame[0]))] or found
    return " at " + _place(*own[-1]) if own else ""


def _place(file: str, line: object, function: str, code: str) -> str:
    return f'File "{file}", line {line}, in {function}: {code}'


@contextmanager
def _explained(wrapper: nn.Module, otherwise: type[ArtifactError] = ArtifactError) -> Iterator[None]:
    module = wrapper.module
    assert isinstance(module, nn.Module)
    try:
        yield
    except Exception as error:
        raise_if_out_of_memory(error)
        name = type(module).__name__
        if _by_value(error):
            raise ArtifactError(
                f"torch.export cannot capture {name}: {type(error).__name__}: {str(error).splitlines()[0]}",
                f"what it computes next depends on values of its inputs, which no graph can hold: {_raised_at(error) or 'in its forward'}",
            ) from error
        raise otherwise(f"torch.export cannot capture {name}: {described(error)}") from error


def _by_value(error: BaseException) -> bool:
    """Whether torch.export met a branch on the values of a tensor."""
    return any(isinstance(cause, _BY_VALUE) for cause in causes(error))


def _program(wrapper: nn.Module, tensors: Sequence[torch.Tensor], batch: Any,
             free: Sequence[Collection[int]] = ()) -> torch.export.ExportedProgram:  # fmt: skip
    try:
        return _exported(wrapper, tensors, batch, free)
    except Exception as error:
        known = known_values(wrapper, tensors) if _by_value(error) else {}
        if not known:
            raise
        with Given(known):
            return _exported(wrapper, tensors, batch, free)


def _exported(wrapper: nn.Module, tensors: Sequence[torch.Tensor], batch: Any,
              free: Sequence[Collection[int]]) -> torch.export.ExportedProgram:  # fmt: skip
    # Without gradients: a model that turns them off for a part (checkpointing does) would become a graph with a graph in it.
    further = [dict.fromkeys(dims, torch.export.Dim.AUTO) for dims in free] or [{}] * len(tensors)
    dynamic = None if batch is None else {"tensors": tuple({0: batch, **dims} for dims in further)}
    # Where it fails, it prints the graph so far, which the error's one line of the model's source says better.
    with torch.no_grad(), _no_fused_attention(), redirect_stderr(StringIO()):
        return torch.export.export(wrapper, tuple(tensors), dynamic_shapes=dynamic, strict=False)


def _batches(program: torch.export.ExportedProgram) -> set[str]:
    """Symbols of the user inputs' first dimensions."""
    inputs = set(program.graph_signature.user_inputs)
    return {str(n.meta["val"].shape[0]) for n in program.graph.nodes if n.op == "placeholder" and n.name in inputs}


def _module(program: torch.export.ExportedProgram) -> GraphModule:
    """Without operators that change their operands in place (``h += x``, ``SiLU(inplace=True)``): no node may depend on the order."""
    inline_regions(program.graph_module)
    if any(getattr(getattr(n.target, "_schema", None), "is_mutable", False) for n in program.graph.nodes):
        program = program.run_decompositions({})
    module = program.module()
    assert isinstance(module, GraphModule)
    return module


@contextmanager
def _no_fused_attention() -> Iterator[None]:
    """Without the fused operators that ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` are in evaluation mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def names_that_are_keywords() -> Iterator[None]:
    """Let torch write the code of graphs whose submodules are called ``in`` or ``class``, as entries of a ModuleDict may be."""
    before = fx_graph._format_target

    def format_target(base: str, target: str) -> str:
        if not any(map(keyword.iskeyword, target.split("."))):
            return before(base, target)
        for part in target.split("."):
            base = f'getattr({base}, "{part}")'
        return base

    fx_graph._format_target = format_target
    try:
        yield
    finally:
        fx_graph._format_target = before


def check_names(module: nn.Module) -> None:
    """Raises ArtifactError for submodules and parameters that something else of their parent hides, a method for the most part."""
    hidden: list[str] = []
    for name, value in _parts(module):
        if _attribute(module, name) is not value and not any(name.startswith(f"{above}.") for above in hidden):
            hidden.append(name)
    if hidden:
        names = ", ".join(map(repr, hidden[:5]))
        raise ArtifactError(
            f"{type(module).__name__} has {names} as a part, and a method or attribute of that name hides it from torch.export",
            "give it another name",
        )


def _parts(module: nn.Module) -> Iterable[tuple[str, Any]]:
    yield from ((name, value) for name, value in module.named_modules(remove_duplicate=False) if name)
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _attribute(module: nn.Module, name: str) -> Any:
    try:
        return operator.attrgetter(name)(module)
    except AttributeError:
        return None


def _raised_at(error: BaseException) -> str:
    """The last line outside of torch and of this package that an error passed through."""
    for cause in causes(error):
        frames = [f for f in traceback.extract_tb(cause.__traceback__) if f.line and not _ours(Path(f.filename))]
        if frames and frames[-1].name != "<module>":
            frame = frames[-1]
            return _place(frame.filename, frame.lineno, frame.name, str(frame.line))
    return ""


def _ours(path: Path) -> bool:
    return any(folder in path.parents for folder in _OURS)
