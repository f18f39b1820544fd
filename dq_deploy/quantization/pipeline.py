"""From a source to a checkpoint: capture, plan, calibrate, dilate, distil, freeze, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch.fx import GraphModule

from ..artifacts import Artifact, Manifest, check_output, create_artifact
from ..artifacts.details import CheckpointDetails, FormatChoice, RotatedInput, RoundedLayer, ScaleChoice, WidthRecord
from ..artifacts.final_error import FinalError
from ..decibels import floored, snr_db
from ..errors import UsageError
from ..formats import FP4, Activations
from ..progress import Progress, silent
from .bits.format_choice import choose_formats, take_formats
from .calibration.sized_source import SizedSource
from .calibration.source import Request
from .calibration.trajectories import Answer, Model, Trajectories
from .checkpoint import freeze, write_checkpoint
from .checkpoint_manifest import checkpoint_manifest
from .choices import Rotation
from .clipping import counting
from .config import QuantizeConfig
from .final_error import final_error
from .graph.calls import as_model
from .graph.edit import set_tensor
from .graph.fold import fold_dilations
from .graph.insertion import insert_quantizers
from .graph.plan import Plan
from .initial.initialize import Initialization, initialize, undilated_weights
from .initial.rotation_choice import choose_rotations, take_rotations
from .initial.scale_choice import choose_scales, take_choices
from .outcome import Outcome, output_bias_table, train
from .output_bias import insert_output_bias, mean_error, output_bias
from .prepare import Prepared, prepare
from .rounding.groups import groups_of
from .rounding.layerwise import round_weights, rounded, take_rounded
from .run import Run
from .running.ambient import default_torch
from .running.device import exact_products, find_device, move, placed
from .running.processes import SharedWork, started_processes
from .running.stages import load_state, pack_trajectories, unpack_trajectories
from .running.work_folder import Stage, check_no_run, work_folder
from .widths import at_width, weights_bytes

_REFERENCE_SEED = 1_000_000  # far from the calibration seeds
_CALIBRATION = "calibration"
ChoiceRecord = TypeVar("ChoiceRecord", bound=BaseModel)


@default_torch()
def quantize(source: Any, output: str | Path, *, preset: str = "w8a8", scheduler: Any = None, sample_shape: tuple[int, ...] | None = None,
             conditions: Mapping[str, Any] | None = None, null_conditions: Mapping[str, Any] | None = None,
             classes: str | Sequence[int] | None = None, prompts: str | Path | Sequence[str] | None = None,
             negative_prompt: str | None = None, height: int | None = None, width: int | None = None, frames: int | None = None,
             image: Any = None, mask: Any = None, control_image: Any = None,
             strength: float | None = None, controlnet: str | Path | None = None, pipeline: str | Path | None = None,
             ip_adapter: str | Path | None = None, ip_adapter_scale: float = 1.0, ip_adapter_image: Any = None,
             lora: str | Path | None = None, lora_scale: float = 1.0,
             blocks: Sequence[str] | None = None, device: str = "cpu", force: bool = False, resume: bool = False,
             progress: Progress = silent, **options: Any) -> Artifact[CheckpointDetails]:  # fmt: skip
    """Quantize a diffusion model with DilateQuant (arXiv 2409.14307) and write the checkpoint to ``output``.

    ``source`` is a path, a hub id, a built-in name or a diffusers pipeline; or any ``nn.Module`` called as
    ``module(sample, timestep, **conditions)``, which needs ``scheduler`` and ``sample_shape`` (without the batch).

    What it is calibrated on (docs/calibration.md): a text pipeline on ``prompts`` (a list, or a file with one on a line) and the
    ``negative_prompt``, drawing pictures of ``height`` by ``width`` pixels, or videos of ``frames`` of these (by default the pipeline's
    own size) or at several ``sizes`` (docs/sizes.md), and from pictures: ``image`` to change, ``mask`` with what of it to draw anew in
    white (files, or images of PIL), ``strength`` of the change, ``control_image`` for the ControlNet in the folder ``controlnet`` (or
    for the source itself, where that is a ControlNet's folder and ``pipeline`` the one that it steers), ``ip_adapter_image`` for the
    IP-Adapter (a file, or a folder that has one) that is loaded into its UNet at ``ip_adapter_scale``; a class-conditional diffusers
    model on ``classes`` (numbers, or "0-9,3"), all by default; any model on ``conditions`` [P, ...], dealt to the calibration seeds in
    turn, and with a guidance scale on ``null_conditions`` [1 or P, ...] for the unconditional half. A condition is a tensor, or a
    tuple, list or dictionary of tensors as the module takes them; numbers, text and truth values among them are fixed in the graph.
    ``lora`` is an adapter file (safetensors), fused into the weights ``lora_scale`` times.

    ``blocks`` are fnmatch patterns of module paths to distil as one block; by default the classes of diffusers. ``options`` are the fields
    of ``QuantizeConfig``.

    Finished stages are kept in ``<output>.resume`` until the checkpoint is written. With ``resume`` a killed run continues from them
    and ends, on a CPU and with the same number of threads, in the very files of a run that was not.

    Calibration, initialization and distillation run on ``device``: cpu, cuda or cuda:N. In processes that ``accelerate launch`` has
    started, each computes its share, on its own GPU if there are any, and the main one writes (docs/distillation.md).

    Raises UsageError, ArtifactError or EnvironmentProblem; nothing is written then.
    """
    request, _ = Request.split(locals())
    config = QuantizeConfig.build(preset, **options)
    processes = started_processes(cpu=find_device(device).type == "cpu")

    def check() -> None:
        check_output(Path(output), force=force)
        check_no_run(output, resume=resume, force=force)

    processes.on_main(check)
    prepared = prepare(source, config, request, progress)
    if isinstance(prepared.calibration, SizedSource) and processes.count > 1:
        raise UsageError(
            f"several sizes or lengths of text are calibrated in one process, and there are {processes.count}",
            "start it without a launcher",
        )
    prepared.to(processes.device or find_device(device))
    identity = {**prepared.identity(), "device": find_device(device).type, "processes": processes.count}
    with ExitStack() as stack:
        own = processes.on_main(lambda: stack.enter_context(work_folder(output, identity, resume=resume, force=force)))
        stack.enter_context(exact_products())
        quantized, reference, manifest = _quantize(prepared, SharedWork(own, processes), progress)

        def write() -> None:
            with create_artifact(output, manifest, force=force) as folder:
                write_checkpoint(folder, quantized, reference)

        processes.on_main(write)
    return Artifact(Path(output), manifest)


def _quantize(prepared: Prepared, work: SharedWork, progress: Progress) -> tuple[GraphModule, Trajectories, Manifest]:
    """The long steps: the frozen model, the reference data and the manifest. What ``work`` holds already is not done again."""
    config = prepared.config
    data = _collect(prepared, _CALIBRATION, range(config.seed, config.seed + config.calibration_samples), work, progress)
    reference = _collect(prepared, "reference", _reference_seeds(config), work, progress)
    run = Run(prepared, data, reference, work, progress)
    formats = _formats(run)
    first = config.rotation is not Rotation.AUTO  # a rotation that is given is there when scales are chosen
    rotations = _rotations(run) if first else []
    choices = _scales(run)
    rotations = rotations if first else _rotations(run)
    quantized = move(copy_with_quantizers(prepared.float_graph, prepared.plan, data.timesteps), prepared.device)
    initial = _initialized(run, quantized)
    rounded = _rounded(run, quantized)
    if config.iterations:
        before = per_timestep_snr(as_model(quantized), reference, progress)
        outcome = train(run, quantized)
        freeze(move(quantized, "cpu"))
    else:  # frozen first: the same codes, and they are not made anew in every pass
        freeze(move(quantized, "cpu"))
        with counting(quantized) as clipped:
            before = per_timestep_snr(as_model(quantized), reference, progress)
        outcome = Outcome([], output_bias_table(run, quantized) if config.corrects_output else None)
    folded = fold_dilations(quantized)
    if outcome.bias is not None:
        insert_output_bias(quantized, outcome.bias, data.timesteps)
    after = before
    if config.iterations or folded or outcome.bias is not None:
        with counting(quantized) as clipped:
            after = per_timestep_snr(as_model(quantized), reference, progress)
    manifest = checkpoint_manifest(run, quantized, initial, rounded, outcome.losses, folded)
    if outcome.judged:
        manifest.details["kept_state"] = outcome.judged.model_dump()
    if config.matryoshka:
        widths = [WidthRecord(weight_bits=config.weight_bits, weights_bytes=weights_bytes(quantized), snr_db=after)]
        widths += [_width(run, quantized, bits) for bits in config.matryoshka[1:]]
        manifest.details["widths"] = [record.model_dump() for record in widths]
    if formats:
        manifest.details["format_choices"] = [choice.model_dump() for choice in formats]
    if choices:
        manifest.details["scale_choices"] = [choice.model_dump() for choice in choices]
    if rotations:
        manifest.details["rotation"] = [choice.model_dump() for choice in rotations]
    seen = per_timestep_snr(as_model(quantized), data.spread(config.reference_samples), progress)
    manifest.details["snr_db"] = {"before_distillation": before, "after_distillation": after, "calibration_samples": seen}
    manifest.details["clipped"] = clipped.fractions()
    if "calibrated_sizes" in manifest.details:
        for entry, sized in zip(manifest.details["calibrated_sizes"], reference.by_size, strict=True):
            entry["snr_db"] = per_timestep_snr(as_model(quantized), sized, progress)
    manifest.details["final_error"] = _final_error(run, quantized).model_dump()
    return quantized, reference, manifest


def _reference_seeds(config: QuantizeConfig) -> range:
    return range(_REFERENCE_SEED + config.seed, _REFERENCE_SEED + config.seed + config.reference_samples)


def _collect(prepared: Prepared, name: str, seeds: range, work: SharedWork, progress: Progress) -> Trajectories:
    """Trajectories of these seeds, each process sampling its share; of several sizes calibration deals them out, and main samples all."""
    if stage := work.load(name):
        return unpack_trajectories(stage)
    model, count, processes = as_model(prepared.float_graph), len(seeds), work.processes
    if isinstance(sized := prepared.calibration, SizedSource):
        collect = sized.calibration if name == _CALIBRATION else sized.reference
        return unpack_trajectories(work.made(name, lambda: Stage(*pack_trajectories(collect(model, seeds, progress)))))
    if count < processes.count:
        made = work.made(name, lambda: Stage(*pack_trajectories(prepared.calibration.collect(model, seeds, progress))))
        return unpack_trajectories(made)
    part = prepared.calibration.collect(model, seeds, progress, processes.part(count))

    def whole(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return processes.joined(tensor, dim, count, part.per_seed)

    conditions = {key: whole(value, 0) for key, value in part.conditions.items()}
    varying = {key: whole(value, 1) for key, value in part.varying.items()}
    data = replace(part, samples=whole(part.samples, 1), outputs=whole(part.outputs, 1), conditions=conditions, varying=varying)
    work.save(name, *pack_trajectories(data))
    return data


def _chosen(name: str, kind: type[ChoiceRecord], choose: Callable[[], Sequence[ChoiceRecord]], work: SharedWork) -> list[ChoiceRecord]:
    """What ``choose`` measures to be best, a stage of that name; the main process measures for all."""
    stage = work.made(name, lambda: Stage({}, {"choices": [choice.model_dump() for choice in choose()]}))
    return [kind(**choice) for choice in stage.record["choices"]]


def _formats(run: Run) -> list[FormatChoice]:
    """Layers that lose too much in FP4, made FP8 ones in the plan."""
    if not any(layer.activation_format is FP4 for layer in run.prepared.plan.quantized):
        return []
    choices = _chosen("format-choices", FormatChoice, lambda: choose_formats(run.prepared, run.data, run.progress), run.work)
    take_formats(run.prepared.plan, choices, run.config)
    return choices


def _scales(run: Run) -> list[ScaleChoice]:
    """Sources of scales that are ours to choose, taken over into the plan."""
    graph, plan, config = run.prepared.float_graph, run.prepared.plan, run.config
    if config.activations is not Activations.AUTO or config.weight_only:
        return []
    choices = _chosen("scale-choices", ScaleChoice, lambda: choose_scales(graph, plan, run.data, config, run.progress), run.work)
    take_choices(plan, choices)
    return choices


def _rotations(run: Run) -> list[RotatedInput]:
    """Rotations, written into the float graph and its plan."""
    graph, plan, config = run.prepared.float_graph, run.prepared.plan, run.config
    if config.rotation is Rotation.NONE:
        return []
    chosen = _chosen("rotations", RotatedInput, lambda: choose_rotations(graph, plan, run.data, config, run.progress), run.work)
    return take_rotations(graph, plan.layers, chosen)


def _initialized(run: Run, quantized: GraphModule) -> Initialization:
    """Tables and dilations of the quantized graph, in place; the main process computes them for all."""

    def make() -> Stage:
        done = initialize(run.prepared.float_graph, quantized, run.data, run.config, run.progress)
        same = undilated_weights(quantized)  # as they were made, and gigabytes of a large model
        return Stage({name: tensor.cpu() for name, tensor in quantized.state_dict().items() if name not in same}, done.model_dump())

    stage = run.work.made("initial", make)
    load_state(quantized, stage.tensors, partial=True)
    return Initialization.model_validate(stage.record)


def _rounded(run: Run, quantized: GraphModule) -> list[RoundedLayer]:
    """Round weights by GPTQ, in place, where that is wanted; the main process does it for all."""
    layers = {name: layer for group in groups_of(quantized, run.config) for name, layer in group.layers.items()}
    if not layers:
        return []

    def make() -> Stage:
        done = round_weights(quantized, run.data, run.config, work=run.work.work, progress=run.progress)
        return Stage(rounded(layers), [record.model_dump() for record in done])

    stage = run.work.made("rounding", make)
    take_rounded(layers, stage.tensors)
    return [RoundedLayer(**entry) for entry in stage.record]


def _width(run: Run, quantized: GraphModule, bits: int) -> WidthRecord:
    """What the frozen model is with weights of ``bits``, and a table of its output's mean error then. The main process measures."""
    correction, static = output_bias(quantized), run.config.activations is Activations.STATIC
    model = as_model(quantized)

    def make() -> Stage:
        tables = {}
        with at_width(quantized, bits):
            if correction is not None:  # what is still wrong once the table of all bits is taken off
                correction.parts = {}
                left = mean_error(model, run.data, batch_size=run.config.batch_size, static=static, progress=run.progress)
                tables["table"] = correction.narrower[bits] = correction.table + left
                correction.parts = {bits: 1.0}
            return Stage(tables, {"snr_db": per_timestep_snr(model, run.reference, run.progress)})

    stage = run.work.made(f"width-{bits}", make)
    if correction is not None:
        correction.narrower[bits] = stage.tensors["table"]
    return WidthRecord(weight_bits=bits, weights_bytes=weights_bytes(quantized, bits), snr_db=stage.record["snr_db"])


def _final_error(run: Run, quantized: GraphModule) -> FinalError:
    """What each step costs the final sample, on the first reference seeds; the main process measures it for all."""
    prepared, config, reference = run.prepared, run.config, run.reference
    count = config.sampled_to_the_end
    if not count:
        return FinalError(not_measured="final_samples is 0")
    seeds = _reference_seeds(config)

    def finals(answer: Answer, runs: int) -> torch.Tensor:
        return prepared.calibration.final_samples(answer, seeds, slice(0, count), runs, prepared.float_graph.meta["output"])

    def make() -> Stage:
        with placed(quantized, prepared.device):
            found = final_error(
                finals, as_model(prepared.float_graph), as_model(quantized), reference.timesteps.tolist(), seeds=count,
                samples_per_run=count * reference.per_seed, batch_size=config.batch_size, progress=run.progress,
            )  # fmt: skip
        return Stage({}, found.model_dump())

    return FinalError(**run.work.made("final-error", make).record)


def copy_with_quantizers(float_graph: GraphModule, plan: Plan, timesteps: torch.Tensor) -> GraphModule:
    """A copy of the graph, rewritten for tables with a row for each of ``timesteps`` [T]; the plan's nodes follow into the copy."""
    # The layers copy their weights; a copy of the whole model first would be one more than memory has room for.
    quantized = deepcopy(float_graph, {id(tensor): tensor for tensor in float_graph.buffers()})
    by_name = {node.name: node for node in quantized.graph.nodes}
    for layer in plan.layers:
        layer.node = by_name[layer.node.name]
    insert_quantizers(quantized, plan, timesteps)
    for name in dict.fromkeys(str(n.target) for n in quantized.graph.nodes if n.op == "get_attr"):
        set_tensor(quantized, name, quantized.get_buffer(name).clone())
    return quantized


@torch.no_grad()
def per_timestep_snr(model: Model, reference: Trajectories, progress: Progress = silent) -> list[float]:
    """SNR in dB of the quantized output against the float one, at each calibrated timestep, over the reference seeds."""
    result = []
    with progress("comparing with the float model", len(reference.timesteps)) as advance:
        for row, timestep in enumerate(reference.timesteps):
            samples, expected = reference.samples[row], reference.outputs[row]
            got = model(samples, timestep.repeat(len(samples)), **reference.given(row))
            result.append(round(floored(snr_db(expected, got)), 4))
            advance()
    return result
