"""The quantized checkpoint: the integer model, its graph, and what it takes to judge it.

Files: ``model.safetensors`` (codes int8, scales, tables, dilation, biases, float leftovers), ``graph.json`` (the forward as ATen nodes and
integer layers), ``reference.safetensors`` (held-out inputs and the float model's outputs), ``manifest.json``.
Tensor names: ``<layer>.weight.codes`` int8 [O, ...] or, up to 4 bits, ``<layer>.weight.packed_codes`` uint8 (two a byte, see
``weights/packing``; ``shape`` of the layer in ``graph.json`` is [O, ...]); ``<layer>.weight.scale`` [O], or [O, B] for B blocks of input
channels (see ``weights/blocked``); ``<layer>.bias`` [O]; ``<quantizer>.scale`` [T], ``.zero_point`` int8 [T] and ``.dilation`` [C]
(``.folded_dilation`` [C]: what it was before it was folded into what computes the activation);
``corrections.output_bias.table`` [T, C], which the output is less of, and ``.table.4`` for weights that are sliced to 4 bits;
float leftovers under their parameter names. Of reference data, ``inputs`` [T, n, ...] and so on are of the first calibrated size, and
``sizes.1.inputs`` of the second.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from ..artifacts import Artifact, open_artifact
from ..artifacts.details import CheckpointDetails
from ..artifacts.reading import read_json, read_tensors
from ..artifacts.writing import write_tensors, write_text
from ..errors import ArtifactError, raise_if_out_of_memory
from ..formats.tables import BIAS, TABLE
from .calibration.trajectories import Trajectories
from .graph.edit import set_tensor
from .graph.graph_json import dump_graph, load_graph
from .graph.insertion import decode, encode
from .graph.modules import named_layers, named_quantizers
from .integrity import check_output_bias, not_finite
from .output_bias import TARGET as OUTPUT_BIAS
from .output_bias import OutputBias, attach, output_bias
from .quantizers import ActivationQuantizer, kind_of
from .table_rows import between, parts
from .weights import LAYERS, QuantizedLayer

BIAS_TABLE = f"{OUTPUT_BIAS}.{TABLE}"
MODEL, GRAPH, REFERENCE = "model.safetensors", "graph.json", "reference.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint. ``model(sample, timestep, ...)`` is the PyTorch reference forward, with everything frozen."""

    artifact: Artifact[CheckpointDetails]
    model: GraphModule
    timesteps: torch.Tensor  # [T] ascending
    table_timesteps: torch.Tensor  # [R] ascending: timesteps of the tables' rows in use, the calibrated ones among them

    @property
    def details(self) -> CheckpointDetails:
        """What its manifest says of it."""
        return self.artifact.details

    @property
    def layers(self) -> dict[str, QuantizedLayer]:
        """Integer layers by name."""
        return dict(named_layers(self.model))

    @property
    def quantizers(self) -> dict[str, ActivationQuantizer]:
        """Quantizers by name."""
        return dict(named_quantizers(self.model))

    def inputs(self, data: Trajectories, row: int, part: slice = slice(None)) -> dict[str, torch.Tensor]:
        """What the network gets at a row's timestep, by name and in its order: of some samples all inputs [n, ...]."""
        samples = data.samples[row, part]
        values = {self.details.inputs[0]: samples, "timestep": data.timesteps[row].repeat(len(samples)), **data.given(row, part)}
        return {name: values[name] for name in self.details.inputs}

    def examples(self, size: int = 0) -> dict[str, torch.Tensor]:
        """Example inputs [2, ...] in the graph's order, at one of the calibrated sizes; only their shapes and types matter."""
        found = {}
        for index, name in enumerate(self.details.inputs):
            if name == "timestep":
                found[name] = torch.tensor([1.0, 2.0])
            elif index == 0:
                found[name] = torch.zeros(self._at(size, name, self.details.sample_shape))
            else:
                condition = self.details.conditions[name]
                found[name] = torch.zeros(self._at(size, name, condition.shape), dtype=getattr(torch, condition.dtype))
        return found

    def _at(self, size: int, name: str, shape: Sequence[int]) -> list[int]:
        """The shape [2, ...] of an input at a calibrated size, from that at the first."""
        found = [2, *shape]
        for free in self.details.free.values():
            for dim in (dim for input_, dim in free.axes if input_ == name):
                found[dim] = free.values[size]
        return found

    def examples_elsewhere(self) -> list[dict[str, torch.Tensor]]:
        """Example inputs [2, ...] at the further sizes that it was calibrated at."""
        return [self.examples(size) for size in range(1, self.size_count)]

    @property
    def size_count(self) -> int:
        """How many sizes it was calibrated at."""
        return max(1, sum(size.calibrated for size in self.details.calibrated_sizes))

    def free_axes(self) -> dict[str, dict[int, str]]:
        """By input, the dimensions beside the batch that are free, and what they are called."""
        found: dict[str, dict[int, str]] = {}
        for name, free in self.details.free.items():
            for input_, dim in free.axes:
                found.setdefault(input_, {})[dim] = name
        return found

    def reference(self) -> Trajectories:
        """The held-out trajectories that the checkpoint carries, of every size."""
        tensors = read_tensors(self.artifact.file(REFERENCE))
        first, *others = [
            _reference(tensors, index, self.details.samples_per_seed) for index in range(max(1, len(self.details.calibrated_sizes)))
        ]
        return replace(first, others=tuple(others))


def _of_size(index: int) -> str:
    """What the names of a size's reference data begin with; the first size's have no such part."""
    return f"sizes.{index}." if index else ""


def _reference_tensors(data: Trajectories, prefix: str) -> dict[str, torch.Tensor]:
    tensors = {"timesteps": data.timesteps, "inputs": data.samples, "outputs.float": data.outputs}
    tensors |= {f"conditions.{k}": v for k, v in data.conditions.items()} | {f"varying.{k}": v for k, v in data.varying.items()}
    return {f"{prefix}{k}": v.contiguous().clone() for k, v in tensors.items()}


def _reference(tensors: dict[str, torch.Tensor], index: int, per_seed: int) -> Trajectories:
    prefix = _of_size(index)

    def under(kind: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(f"{prefix}{kind}."): v for k, v in tensors.items() if k.startswith(f"{prefix}{kind}.")}

    timesteps, inputs, outputs = (tensors[f"{prefix}{name}"] for name in ("timesteps", "inputs", "outputs.float"))
    return Trajectories(timesteps, inputs, outputs, under("conditions"), per_seed, under("varying"))


def freeze(model: GraphModule) -> None:
    """Fix every layer and table to the integers and scales that a checkpoint stores. In place."""
    for _, layer in named_layers(model):
        layer.freeze()
    for _, quantizer in named_quantizers(model):
        quantizer.freeze()


def integer_tensors(model: GraphModule) -> dict[str, torch.Tensor]:
    """Every tensor of a frozen model, of any shape, under its checkpoint name."""
    tensors: dict[str, torch.Tensor] = {}
    constants = {str(n.target) for n in model.graph.nodes if n.op == "get_attr"}
    for name, layer in named_layers(model):
        for part, tensor in layer.tensors().items():
            tensors[_bias_name(name, constants) if part == BIAS else f"{name}.{part}"] = tensor
    for name, quantizer in named_quantizers(model):
        tensors |= {f"{name}.{part}": tensor for part, tensor in quantizer.tensors().items()}
    if correction := output_bias(model):
        tensors[BIAS_TABLE] = correction.table
        tensors |= {f"{BIAS_TABLE}.{bits}": table for bits, table in correction.narrower.items()}
    for target in sorted(constants):
        tensors[target] = model.get_buffer(target)
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}


def _bias_name(layer: str, constants: Container[str]) -> str:
    """What a layer's own bias is called: not as a constant of the graph, such as a bias that the model adds in a line of its own."""
    name = f"{layer}.{BIAS}"
    while name in constants:
        name = f"{name.removesuffix(BIAS)}weight.{BIAS}"
    return name


def write_checkpoint(folder: Path, model: GraphModule, reference: Trajectories) -> None:
    """Write a frozen model and its reference data into a folder (the manifest is the caller's)."""
    configs = {name: layer.config() for name, layer in named_layers(model)}
    quantizers = {name: quantizer.config() for name, quantizer in named_quantizers(model)}
    graph = {"nodes": dump_graph(model.graph), "layers": configs, "quantizers": quantizers}
    if correction := output_bias(model):
        graph["output_bias"] = correction.config()
    write_text(folder / GRAPH, json.dumps(graph, indent=1, sort_keys=True, allow_nan=False) + "\n")
    write_tensors(folder / MODEL, integer_tensors(model))
    data: dict[str, torch.Tensor] = {}
    for index, sized in enumerate(reference.by_size):
        data |= _reference_tensors(sized, _of_size(index))
    write_tensors(folder / REFERENCE, data)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Open, verify and rebuild a checkpoint.

    Raises UsageError (no such path) or ArtifactError (not a checkpoint, changed files, malformed or non-finite contents).
    """
    artifact = open_artifact(path, "checkpoint")
    tensors = read_tensors(artifact.file(MODEL))
    description = read_json(artifact.file(GRAPH), "the graph of a checkpoint")
    try:
        constants = {str(node["target"]) for node in description["nodes"] if node["op"] == "get_attr"}
        bad = [name for name, tensor in tensors.items() if not_finite(tensor, mask=name in constants)]
        if bad:
            raise ArtifactError(f"{path}: NaN or Inf in {', '.join(bad[:5])}")
        timesteps = torch.tensor(artifact.manifest.timesteps, dtype=torch.float32)
        # Static tables say the same at every timestep.
        gaps = 1 if artifact.manifest.activations == "static" else parts(len(timesteps))
        model = _rebuild(description, tensors, timesteps, gaps)
    except KeyError as error:
        raise ArtifactError(
            f"{path}: '{error.args[0]}' is not among the tensors, or is no kind that this version knows",
            f"it was written by dq-deploy {artifact.manifest.tools.get('dq-deploy', '(no version)')}: use that one, or quantize again",
        ) from None
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise_if_out_of_memory(error)
        raise ArtifactError(f"{path}: the graph and the tensors do not fit ({type(error).__name__}: {error})") from None
    return Checkpoint(artifact, model, timesteps, between(timesteps, gaps).float())


def _rebuild(description: dict[str, Any], tensors: dict[str, torch.Tensor], timesteps: torch.Tensor, gaps: int) -> GraphModule:
    """The quantized graph; ``gaps`` is the number of parts that the tables' gaps are divided into."""
    root, table_timesteps = nn.Module(), between(timesteps, gaps).float()
    constants = {str(node["target"]) for node in description["nodes"] if node["op"] == "get_attr"}
    root.add_module("layers", nn.Module())
    root.add_module("quantizers", nn.Module())
    for name, config in description["layers"].items():
        layer = LAYERS[config["op"]].from_tensors(name, config, tensors, _bias_name(name, constants))
        root.get_submodule("layers").add_module(encode(name), layer)
    for name, config in description["quantizers"].items():
        quantizer = kind_of(config).from_tensors(name, config, tensors, timesteps, gaps)
        root.get_submodule("quantizers").add_module(encode(name), quantizer)
    if (config := description.get("output_bias")) is not None:  # without: a checkpoint from before there was one
        check_output_bias(BIAS_TABLE, tensors, len(timesteps))
        correction = OutputBias(between(tensors[BIAS_TABLE], gaps).float(), table_timesteps, **config)
        for name in (name for name in tensors if name.startswith(f"{BIAS_TABLE}.")):
            check_output_bias(name, tensors, len(timesteps))
            correction.narrower[int(name.removeprefix(f"{BIAS_TABLE}."))] = between(tensors[name], gaps).float()
        attach(root, correction)
    graph = load_graph(description["nodes"])
    for node in graph.nodes:
        if node.op == "get_attr":
            set_tensor(root, str(node.target), tensors[str(node.target)])
        if node.op == "call_module" and str(node.target).startswith("quantizers."):
            node.meta["quantizer"] = decode(str(node.target))
    return GraphModule(root, graph)
