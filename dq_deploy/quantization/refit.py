"""Other weights in the scales of a checkpoint, without calibration: a LoRA added to the network, or taken off it, or exchanged.

The graph, the tables, the dilation and the scales of weights stay. A layer whose float weight the LoRA changes gets other codes; every
other layer keeps its own. The codes of a changed layer round, in the layer's stored scale s_w [O],

    T = (s ∘ W') / d    of the new float weight W' [O, C, ...], or where the checkpoint was distilled
    T = Ŵ + (s ∘ (W' - W)) / d

with the dilation s [C] of what it reads, what its own outputs were divided by d [O] when dilations were folded, and the checkpoint's weight
Ŵ, which training has moved from W. GPTQ's H is of the held-out samples that the checkpoint carries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from ..artifacts import Artifact, check_output, create_artifact, open_artifact, sha256_file
from ..artifacts.details import Adapter, CheckpointDetails, Origin, RefitRecord
from ..artifacts.final_error import FinalError
from ..artifacts.origin import absolute_place
from ..artifacts.reading import read_json, read_tensors
from ..errors import ArtifactError, UsageError
from ..formats.tables import FOLDED
from ..progress import Progress, silent
from ..sources import Lora, Source, reload_source
from ..sources.ip_adapter import CONFIG_KEY as IP_ADAPTER
from ..sources.lora import check_lora
from .calibration.trajectories import Trajectories
from .calling import CallForm
from .checkpoint import BIAS_TABLE, GRAPH, MODEL, Checkpoint, load_checkpoint, write_checkpoint
from .choices import Rounding, SkipHalves
from .clipping import counting
from .config import QuantizeConfig
from .graph.blocks import assign_blocks
from .graph.calls import as_model
from .graph.capture import capture
from .graph.edit import set_tensor
from .graph.fold import fold_dilations
from .graph.insertion import encode
from .graph.modules import named_quantizers
from .graph.plan import Plan, make_plan
from .graph.roles import assign_roles
from .graph.skip_halves import arrange_skip_halves
from .initial.dilation import dilate
from .initial.rotation_choice import take_rotations
from .initial.scale_choice import take_choices
from .numerics import per_channel
from .output_bias import insert_output_bias
from .pipeline import copy_with_quantizers, per_timestep_snr
from .quantizers import kind_of
from .rounding.layerwise import round_weights
from .running.ambient import default_torch
from .weights import QuantizedWeight

ROUNDINGS = (Rounding.NEAREST.value, Rounding.GPTQ.value)
_OWN_SCALE = (1.0,)


@default_torch()
def refit(path: str | Path | Artifact, output: str | Path, *, lora: str | Path | None = None, lora_scale: float = 1.0,
          source: str | Path | None = None, rounding: str | None = None, ip_adapter_scale: float | None = None, force: bool = False,
          progress: Progress = silent) -> Artifact[CheckpointDetails]:  # fmt: skip
    """Write to ``output`` the checkpoint ``path`` with the weights of its source and the file ``lora``, added ``lora_scale`` times.

    A LoRA that the checkpoint has is replaced; ``lora`` None takes it off. ``source`` is another folder, hub id or built-in with other
    weights of the same network, a fine-tuned copy, in the place of the one that the manifest names. ``rounding`` is "gptq" or "nearest",
    by default the checkpoint's. Graph, tables and scales stay, so ``export`` gives the same graph with other integers.

    ``ip_adapter_scale`` is how much the picture of the checkpoint's IP-Adapter counts, in the place of what it was quantized with: a
    number in the graph, beside which all else stays. Without a ``lora`` the one that is there stays too.

    Raises UsageError (what changes nothing, a scale without an IP-Adapter, layers that have no codes of their own in a scale) and
    ArtifactError (no checkpoint, a source that has changed, a checkpoint that does not hold its dilation).
    """
    if rounding not in (None, *ROUNDINGS):
        raise UsageError(f"unknown rounding '{rounding}'", f"roundings: {', '.join(ROUNDINGS)}")
    check_output(Path(output), force=force)
    artifact = _checkpoint(path)
    old = load_checkpoint(artifact.path)
    base, new = _sources(old, source, None if lora is None else Lora(Path(lora), lora_scale), ip_adapter_scale)
    before, after = _Network.of(base, old), _Network.of(new, old)
    _check_layers(after, old)
    reference = after.answered(old.reference())
    changes = _Changes.between(before, after)
    changed = list(changes.layers)
    if not (changed or changes.biases or changes.constants or new.config != base.config):
        what = lora or source or ("no LoRA" if ip_adapter_scale is None else f"a scale of {ip_adapter_scale:g}")
        raise UsageError(f"{what} changes nothing of {artifact.path}", "there is nothing to refit")
    _refuse(changed, old)
    _fill(after, changes, old, read_tensors(artifact.file(MODEL)))
    outside = _outside(after, changed)
    config = after.config.model_copy(update={"rounding": Rounding(rounding)}) if rounding else after.config
    records = _round(after, changed, old, _calibrated(reference, old), config, progress)
    with counting(after.quantized) as clipped:
        snr = per_timestep_snr(as_model(after.quantized), reference, progress)
    manifest = artifact.manifest.model_copy(deep=True)
    manifest.details |= {
        "source": new.origin,
        "model_config": new.config,
        "snr_db": dict.fromkeys(("before_distillation", "after_distillation"), snr),  # of the calibration samples there are none here
        "clipped": clipped.fractions(),
        "rounding": [record for record in (artifact.manifest.details.get("rounding") or []) if record["layer"] not in changed] + records,
        "final_error": FinalError(not_measured="the weights were refitted, and nothing is sampled then").model_dump(),
        "refit": RefitRecord(
            layers=changed,
            clipped_weights=outside,
            of=artifact.as_parent.manifest_sha256,
            new_source=source is not None,
            rounding=rounding,
            ip_adapter_scale=ip_adapter_scale,
        ).model_dump(),
    }
    manifest.details.pop("kept_state", None)  # was measured with the old weights
    for size, sized in zip(manifest.details.get("calibrated_sizes", []), reference.by_size, strict=False):
        size["snr_db"] = per_timestep_snr(as_model(after.quantized), sized, progress)
    with create_artifact(output, manifest, force=force) as folder:
        write_checkpoint(folder, after.quantized, reference)
    return Artifact(Path(output), manifest)


def _checkpoint(path: str | Path | Artifact) -> Artifact[CheckpointDetails]:
    """The checkpoint of which a refit is made. Raises ArtifactError for another kind, UsageError for codes that cannot be made anew."""
    checkpoint: Artifact[CheckpointDetails] = open_artifact(path.path if isinstance(path, Artifact) else path, "checkpoint")
    if checkpoint.details.format_choices:
        raise UsageError(
            f"{checkpoint.path} has FP4 layers, which a measurement chose and whose scales are by block", "quantize again with --lora"
        )
    if checkpoint.details.branched:
        raise UsageError(f"{checkpoint.path} has low-rank branches, which are parts of its float weights", "quantize again with --lora")
    if checkpoint.details.widths:
        raise UsageError(f"{checkpoint.path} has several widths, whose codes are rounded for all of them", "quantize again with --lora")
    return checkpoint


def _sources(old: Checkpoint, source: str | Path | None, lora: Lora | None, scale: float | None) -> tuple[Source, Source]:
    """What the checkpoint was made from, and what it is to be made of; ``scale`` is of its IP-Adapter."""
    origin, place = old.details.source, old.artifact.path
    if origin is None or origin.reference.startswith("object:"):
        raise UsageError(f"{place} was made from a model in memory, which cannot be loaded again", "quantize it again, with the LoRA in it")
    if lora is not None:
        check_lora(lora)
    base = reload_source(origin, place)
    if base.sha256 != origin.sha256:
        raise ArtifactError(f"the weights of {origin.reference} are not those that {place} was made from", "quantize again")
    wanted = origin if lora is None and scale is not None else _with(origin, lora)
    if scale is not None:
        if origin.ip_adapter is None:
            raise UsageError(f"{place} has no IP-Adapter, and a scale for one is given", "leave --ip-adapter-scale out")
        wanted = wanted.model_copy(update={"ip_adapter": origin.ip_adapter.model_copy(update={"scale": scale})})
    new = reload_source(wanted, place, source)
    apart = sorted(name for name in base.config.keys() | new.config.keys() if base.config.get(name) != new.config.get(name))
    if apart and apart != ([] if scale is None else [IP_ADAPTER]):
        raise UsageError(f"{source} is another network than {origin.reference}: they differ in {', '.join(apart)}", "quantize it")
    return base, new


def _with(origin: Origin, lora: Lora | None) -> Origin:
    if lora is None:
        return origin.model_copy(update={"lora": None})
    adapter = Adapter(path=str(lora.path), scale=lora.scale, absolute=absolute_place(lora.path), sha256=sha256_file(lora.path))
    return origin.model_copy(update={"lora": adapter})


@dataclass(frozen=True)
class _Network:
    """A source as the checkpoint's plan has it: its float graph, and the same with quantizers that know nothing yet."""

    config: QuantizeConfig
    graph: GraphModule
    plan: Plan
    quantized: GraphModule

    @classmethod
    def of(cls, source: Source, old: Checkpoint) -> _Network:
        """As ``quantize`` prepares it."""
        details = old.details
        config = QuantizeConfig(**(old.artifact.manifest.quantization or {}))
        call = details.call_record or {}
        form = CallForm.of_record(call["arguments"]) if call.get("arguments") else None
        graph = capture(source.model, old.examples(), form=form, others=old.examples_elsewhere())
        arrange_skip_halves(graph, SkipHalves(details.skip_halves.mode))
        plan = make_plan(graph, config)
        take_choices(plan, details.scale_choices)
        assign_roles(graph, plan.layers)
        assign_blocks(graph, plan, None)  # what is read at all; which, does not matter here
        if details.rotation:
            take_rotations(graph, plan.layers, details.rotation)
        return cls(config, graph, plan, copy_with_quantizers(graph, plan, old.timesteps))

    @torch.no_grad()
    def answered(self, samples: Trajectories) -> Trajectories:
        """The samples with this float model's outputs."""
        model = as_model(self.graph)
        outputs = [
            model(samples.samples[row], timestep.repeat(samples.samples.shape[1]), **samples.given(row))
            for row, timestep in enumerate(samples.timesteps)
        ]
        return replace(samples, outputs=torch.stack(outputs), others=tuple(map(self.answered, samples.others)))

    def layers(self) -> dict[str, QuantizedWeight]:
        """Those with weights, by name."""
        found = {layer.name: self.quantized.get_submodule(str(layer.node.target)) for layer in self.plan.quantized}
        return {name: layer for name, layer in found.items() if isinstance(layer, QuantizedWeight)}

    def constants(self) -> dict[str, torch.Tensor]:
        """Tensors of the graph that are no layer's."""
        targets = {str(node.target) for node in self.quantized.graph.nodes if node.op == "get_attr"}
        return {target: self.quantized.get_buffer(target) for target in targets}


def _check_layers(network: _Network, old: Checkpoint) -> None:
    """Raise ArtifactError where this version plans other layers than the checkpoint has."""
    planned = {layer.name for layer in network.plan.quantized}
    if planned != set(old.layers):
        apart = ", ".join(sorted(planned ^ set(old.layers))[:5])
        raise ArtifactError(f"{old.artifact.path} has other layers than this version plans: {apart}", "quantize again")


def _dilations(old: Checkpoint, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The dilation s [C] of every quantizer, before any was folded. Raises ArtifactError for a checkpoint that does not have it."""
    lost = [entry.quantizer for entry in old.details.dilation if entry.folded_into and f"{entry.quantizer}.{FOLDED}" not in stored]
    if lost:
        raise ArtifactError(
            f"{old.artifact.path} was written before checkpoints kept what was folded: {', '.join(lost[:3])}", "quantize again with --lora"
        )
    return {name: stored.get(f"{name}.{FOLDED}", quantizer.dilation) for name, quantizer in old.quantizers.items()}


@dataclass(frozen=True)
class _Changes:
    """What differs between two networks: ``layers`` with their old and new weight [O, C, ...]; layers by their bias; constants."""

    layers: dict[str, tuple[torch.Tensor, torch.Tensor]]
    biases: set[str]
    constants: set[str]

    @classmethod
    def between(cls, before: _Network, after: _Network) -> _Changes:
        """Of networks that nothing has been filled into."""
        old, new, constants = before.layers(), after.layers(), before.constants()
        weights = {name: (old[name].weight.detach(), layer.weight.detach().clone()) for name, layer in new.items()}
        return cls(
            {name: pair for name, pair in weights.items() if not torch.equal(*pair)},
            {name for name, layer in new.items() if _differ(layer.bias, old[name].bias)},
            {name for name, value in after.constants().items() if _differ(value, constants[name])},
        )


def _differ(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and not torch.equal(a, b)


@torch.no_grad()
def _fill(network: _Network, changes: _Changes, old: Checkpoint, stored: Mapping[str, torch.Tensor]) -> None:
    """Give the new network all that the checkpoint knows, in place, and its changed layers their float weights in stored units."""
    dilations = _dilations(old, stored)
    for name, quantizer in named_quantizers(network.quantized):
        quantizer.dilation.copy_(dilations[name])
    layers = network.layers()
    for layer in layers.values():
        layer.set_frozen(torch.empty(0), torch.ones(len(layer.weight)))  # only what becomes of its scale is looked at
    fold_dilations(network.quantized)
    reads = {layer.name: dilations[layer.quantizers[0]] for layer in network.plan.quantized if layer.quantizers}
    for name, layer in layers.items():
        was: Any = old.layers[name]
        divided = 1 / layer.stored.scale  # [O]
        if layer.bias is not None and name not in changes.biases:
            layer.bias.data = was.bias.detach().clone()
        layer.set_frozen(*was.stored)
        if name in changes.layers:
            before, after = (_in_stored_units(weight, reads.get(name), divided) for weight in changes.layers[name])
            layer.frozen = None
            layer.weight.data = _dequantized(was, before) + after - before if old.details.distillation else after
            layer.log_scale.data = was.stored.scale.log()
    for name, value in network.constants().items():
        if name not in changes.constants:
            set_tensor(network.quantized, name, stored[name].to(value.dtype))
    _take_quantizers(network, old, stored)


def _in_stored_units(weight: torch.Tensor, s: torch.Tensor | None, divided: torch.Tensor) -> torch.Tensor:
    """(s ∘ W) / d of a weight [O, C, ...], of the dilation s [C] of what it reads, and d [O]."""
    dilated = weight if s is None or bool((s == 1).all()) else dilate(weight, s)
    return dilated / per_channel(divided, dilated, 0)


def _dequantized(layer: QuantizedWeight, like: torch.Tensor) -> torch.Tensor:
    codes, scale = layer.integer_weight()
    return codes.reshape(like.shape) * per_channel(scale, like, 0)


def _take_quantizers(network: _Network, old: Checkpoint, stored: Mapping[str, torch.Tensor]) -> None:
    """The checkpoint's own, with a row for each calibrated timestep."""
    holder: Any = network.quantized.get_submodule("quantizers")
    for name, config in read_json(old.artifact.file(GRAPH), "the graph of a checkpoint")["quantizers"].items():
        quantizer = kind_of(config).from_tensors(name, config, stored, old.timesteps, 1)
        quantizer.folded = stored.get(f"{name}.{FOLDED}")
        setattr(holder, encode(name), quantizer)


def _refuse(changed: Sequence[str], old: Checkpoint) -> None:
    """Raise UsageError for changed layers whose codes are not one of a scale for each output."""
    layers: Mapping[str, Any] = old.layers
    other = [name for name in changed if layers[name].codebook is not None or layers[name].stored.scale.dim() != 1]
    if other:
        raise UsageError(
            f"the LoRA changes {len(other)} layers of codebooks or of scales by block: {', '.join(other[:3])}",
            "only a calibration makes these: quantize again with --lora",
        )


def _outside(network: _Network, changed: Sequence[str]) -> float:
    """Share of the changed layers' weights that are more than half a step beyond the last code of their stored scales."""
    layers, outside, count = network.layers(), 0, 0
    for layer in (layers[name] for name in changed):
        steps = layer.weight.detach() / per_channel(layer.steps(), layer.weight, 0)
        outside += int((steps.abs() > layer.format.code_range(narrow=True)[1] + 0.5).sum())
        count += steps.numel()
    return outside / max(1, count)


def _calibrated(reference: Trajectories, old: Checkpoint) -> Trajectories:
    """Of several sizes those that it was calibrated at: another stays for what is fitted to none of its samples to be judged by."""
    further = zip(old.details.calibrated_sizes[1:], reference.others, strict=False)
    return replace(reference, others=tuple(data for size, data in further if size.calibrated))


def _round(network: _Network, changed: Sequence[str], old: Checkpoint, reference: Trajectories, config: QuantizeConfig,
           progress: Progress) -> list[dict[str, Any]]:  # fmt: skip
    """Codes of the changed layers in their stored scales, in place."""
    records = round_weights(network.quantized, reference, config, scales=_OWN_SCALE, progress=progress)
    layers = network.layers()
    with torch.no_grad():
        for name in changed:
            layer, was = layers[name], old.layers[name]
            codes, _ = layer.integer_weight()
            layer.set_frozen(codes.reshape(was.stored.codes.shape).to(was.stored.codes.dtype), was.stored.scale)
    table = read_tensors(old.artifact.file(MODEL)).get(BIAS_TABLE)
    if table is not None:
        insert_output_bias(network.quantized, table, old.timesteps)
    return [record.model_dump() for record in records]
