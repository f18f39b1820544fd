"""The quantized checkpoint: the integer model, its graph, and what it takes to judge it.

Files: ``model.safetensors`` (codes int8, scales, tables, dilation, biases, float leftovers), ``graph.json`` (the forward as ATen nodes and
integer layers), ``reference.safetensors`` (held-out inputs and the float model's outputs), ``manifest.json``.
Tensor names: ``<layer>.weight.codes`` int8 [O, ...] or, up to 4 bits, ``<layer>.weight.packed_codes`` uint8 (two a byte, see
``weights/packing``; ``shape`` of the layer in ``graph.json`` is [O, ...]); ``<layer>.weight.scale`` [O], or [O, B] for B blocks of input
channels (see ``weights/blocked``); ``<layer>.bias`` [O]; ``<quantizer>.scale`` [T], ``.zero_point`` int8 [T] and ``.dilation`` [C]
(``.folded_dilation`` [C]: what it was before it was folded into what computes the activation);
``corrections.output_bias.table`` [T, C], which the output is less of, and ``.table.4`` for weights that are sliced to 4 bits;
float leftovers under their parameter names.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
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
from .integrity import check_output_bias, not_finite
from .output_bias import TARGET as OUTPUT_BIAS
from .output_bias import OutputBias, attach, output_bias
from .quantizers import ActivationQuantizer, kind_of
from .table_rows import between, parts
from .weights import LAYERS, QuantizedMatmul, QuantizedWeight

BIAS_TABLE = f"{OUTPUT_BIAS}.{TABLE}"
MODEL, GRAPH, REFERENCE = "model.safetensors", "graph.json", "reference.safetensors"
IntegerLayer = QuantizedWeight | QuantizedMatmul


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
    def layers(self) -> dict[str, IntegerLayer]:
        """Integer layers by name."""
        return dict(named_layers(self.model))

    @property
    def quantizers(self) -> dict[str, ActivationQuantizer]:
        """Quantizers by name."""
        return dict(named_quantizers(self.model))

    def examples(self) -> dict[str, torch.Tensor]:
        """Example inputs [2, ...] in the graph's order; only their shapes and types matter."""
        found = {}
        for index, name in enumerate(self.details.inputs):
            if name == "timestep":
                found[name] = torch.tensor([1.0, 2.0])
            elif index == 0:
                found[name] = torch.zeros(2, *self.details.sample_shape)
            else:
                condition = self.details.conditions[name]
                found[name] = torch.zeros(2, *condition.shape, dtype=getattr(torch, condition.dtype))
        return found

    def reference(self) -> Trajectories:
        """The held-out trajectories that the checkpoint carries."""
        tensors = read_tensors(self.artifact.file(REFERENCE))

        def under(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        return Trajectories(
            tensors["timesteps"], tensors["inputs"], tensors["outputs.float"], under("conditions."), self.details.samples_per_seed,
            under("varying."),
        )  # fmt: skip


def named_layers(model: nn.Module) -> Iterator[tuple[str, IntegerLayer]]:
    """Integer layers of a quantized graph with their names."""
    for target, module in model.named_modules():
        if isinstance(module, IntegerLayer):
            yield decode(target), module


def named_quantizers(model: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """Quantizers of a quantized graph with their names."""
    for target, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            yield decode(target), module


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
    data = {"timesteps": reference.timesteps, "inputs": reference.samples, "outputs.float": reference.outputs}
    data |= {f"conditions.{k}": v for k, v in reference.conditions.items()} | {f"varying.{k}": v for k, v in reference.varying.items()}
    write_tensors(folder / REFERENCE, {k: v.contiguous().clone() for k, v in data.items()})


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
