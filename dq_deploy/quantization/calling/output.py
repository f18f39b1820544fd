"""What a network gives back: one tensor, or several in any structure.

A graph has one output. Several tensors [N, ...] of a network are that one side by side, each as [N, its elements], and are taken apart
again where the network is stood in for.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, make_dataclass
from typing import Any

import torch
from torch import nn

from ...errors import ArtifactError

Tree = dict[str, Any]
# {"tensor": [shape without the batch]} or None for the one tensor of a graph that has one; {"rows": tree}: a list with an entry for each
# sample; {"list" | "tuple": [tree, ...]}; {"dict": [[key, tree], ...]} with "class": the class of diffusers that it is
SAMPLE = "sample"


@dataclass(frozen=True)
class OutputForm:
    """The structure of a network's output, whose tensors are in the graph's output in their order."""

    tree: Tree

    @property
    def shapes(self) -> list[list[int]]:
        """Of the tensors, without the batch."""
        return [leaf["tensor"] for leaf in _leaves(self.tree)]

    @property
    def several(self) -> bool:
        """Whether the graph's output is several tensors side by side."""
        return len(self.shapes) > 1

    def record(self, model_class: str) -> Tree | None:
        """The manifest's entry; None for one tensor in the structure that the drop-in returns by default."""
        plain = self.tree
        if "dict" in plain and [key for key, _ in plain["dict"]] == [SAMPLE] and plain.get("class") == usual_class(model_class):
            plain = plain["dict"][0][1]
        return None if "tensor" in plain else self.tree

    def restore(self, output: torch.Tensor, *, return_dict: bool) -> Any:
        """The network's output from the graph's [N, ...]: a class of diffusers, or with ``return_dict`` off its values in a tuple."""
        parts = [output]
        if self.several:
            sizes = [math.prod(shape) for shape in self.shapes]
            split = output.split(sizes, dim=1)
            parts = [part.reshape(len(output), *shape) for part, shape in zip(split, self.shapes, strict=True)]
        made = _made(self.tree, iter(parts))
        if "class" not in self.tree:
            return made
        return class_of(self.tree["class"], list(made))(**made) if return_dict else tuple(made.values())


def output_form(output: Any, module: nn.Module, batch: int, *, sample_list: bool = False) -> OutputForm:
    """The form of what ``module`` returned at this batch; ``sample_list`` as in ``packed``.

    Raises ArtifactError for an output without tensors, and for tensors without a batch dimension or of whole numbers.
    """
    return OutputForm(_Description(type(module).__name__, batch, sample_list).of(counted(output)))


def counted(output: Any) -> Any:
    """What counts of an output: of a tuple that begins with a tensor this tensor, of a dictionary with a ``sample`` the sample."""
    if isinstance(output, Mapping) and SAMPLE in output and len(output) > 1:
        return type(output)(**{SAMPLE: output[SAMPLE]})
    if isinstance(output, tuple) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    return output


def packed(output: Any, *, sample_list: bool = False) -> torch.Tensor:
    """What the graph computes [N, ...]: the one tensor of an output that counts, or all of them side by side.

    ``sample_list``: the tensors are those of single samples, for a network that takes its batch as a list.
    """
    tensors = list(_tensors(counted(output)))
    if sample_list:
        return torch.stack(tensors)
    return tensors[0] if len(tensors) == 1 else torch.cat([t.flatten(1) if t.dim() > 1 else t[:, None] for t in tensors], dim=1)


def usual_class(model_class: str) -> str | None:
    """What a model of diffusers with this name gives back, unless a manifest says otherwise."""
    if model_class == "UNet2DConditionModel":
        return "diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput"
    if "Transformer" in model_class:
        return "diffusers.models.modeling_outputs.Transformer2DModelOutput"
    return "diffusers.models.unets.unet_2d.UNet2DOutput"


def class_of(name: str | None, fields: list[str]) -> Any:
    """A class of diffusers' outputs by its full name, or one made for these ``fields`` where this diffusers has none of that name."""
    from diffusers.utils.outputs import BaseOutput

    module, _, leaf = (name or "").rpartition(".")
    if module.startswith("diffusers.models."):
        try:
            found = getattr(importlib.import_module(module), leaf, None)
        except ImportError:
            found = None
        if isinstance(found, type) and issubclass(found, BaseOutput):
            return found
    return _made_class(tuple(fields))


def _made_class(fields: tuple[str, ...]) -> Any:
    from diffusers.utils.outputs import BaseOutput

    return make_dataclass("ModelOutput", [(name, Any) for name in fields], bases=(BaseOutput,))


@dataclass(frozen=True)
class _Description:
    model_class: str
    batch: int
    sample_list: bool

    def of(self, output: Any) -> Tree:
        if isinstance(output, torch.Tensor):
            if not output.dim() or len(output) != self.batch or not output.is_floating_point():
                what = f"a tensor {list(output.shape)} of {str(output.dtype).removeprefix('torch.')} for a batch of {self.batch}"
                raise ArtifactError(f"{self.model_class} returns {what}, and an output is numbers [N, ...] for a batch of N")
            return {"tensor": list(output.shape[1:])}
        if isinstance(output, Mapping):
            made = type(output)
            kind = {} if made is dict else {"class": f"{made.__module__}.{made.__qualname__}"}
            return {"dict": [[key, self.of(value)] for key, value in output.items()], **kind}
        if self.sample_list and isinstance(output, list) and len({tuple(one.shape) for one in output}) == 1 and len(output) == self.batch:
            return {"rows": {"tensor": list(output[0].shape)}}
        if isinstance(output, tuple | list) and output:
            return {"list" if isinstance(output, list) else "tuple": [self.of(value) for value in output]}
        raise ArtifactError(f"{self.model_class} returns {type(output).__name__}, and a tensor is needed, or several of them")


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    else:
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


def _leaves(tree: Tree) -> Iterator[Tree]:
    if "tensor" in tree:
        yield tree
    elif "rows" in tree:
        yield from _leaves(tree["rows"])
    else:
        for part in _parts(tree):
            yield from _leaves(part)


def _parts(tree: Tree) -> list[Tree]:
    if "dict" in tree:
        return [part for _, part in tree["dict"]]
    parts: list[Tree] = tree["list"] if "list" in tree else tree["tuple"]
    return parts


def _made(tree: Tree, parts: Any) -> Any:
    if "tensor" in tree:
        return next(parts)
    if "rows" in tree:
        return list(next(parts).unbind(0))
    if "dict" in tree:
        return {key: _made(part, parts) for key, part in tree["dict"]}
    made = [_made(part, parts) for part in _parts(tree)]
    return made if "list" in tree else tuple(made)
