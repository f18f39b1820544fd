"""From a source to a checkpoint: capture, plan, calibrate, dilate, distil, freeze, write."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from ..artifacts import Artifact, Manifest, check_output, create_artifact, sha256_json
from ..errors import ArtifactError, UsageError
from ..progress import Progress, silent
from .block_trainer import BlockRecord
from .blocks import assign_blocks
from .calibration import Trajectories
from .calibration_source import Request, calibration_source
from .capture import capture, decompose_attention, input_names
from .checkpoint import freeze, write_checkpoint
from .config import QuantizeConfig
from .distillation import distill
from .fold import fold_dilations
from .initialize import DilationRecord, initialize
from .plan import Plan, insert_quantizers, make_plan
from .trained import check_patterns

_REFERENCE_SEED = 1_000_000  # far from the calibration seeds


def quantize(source: Any, output: str | Path, *, preset: str = "w8a8", scheduler: Any = None, sample_shape: tuple[int, ...] | None = None,
             conditions: dict[str, torch.Tensor] | None = None, null_conditions: dict[str, torch.Tensor] | None = None,
             classes: str | Sequence[int] | None = None, blocks: Sequence[str] | None = None, force: bool = False,
             progress: Progress = silent, **options: Any) -> Artifact:  # fmt: skip
    """Quantize a diffusion model with DilateQuant (arXiv 2409.14307) and write the checkpoint to ``output``.

    ``source`` is a path, a hub id, a built-in name or a diffusers pipeline; or any ``nn.Module`` called as
    ``module(sample, timestep, **conditions)``, which needs ``scheduler`` and ``sample_shape`` (without the batch). ``classes`` (numbers,
    or "0-9,3") are those of a class-conditional diffusers model, all by default. Other ``conditions`` [P, ...] are dealt to the calibration
    seeds in turn; with a guidance scale, ``null_conditions`` [1 or P, ...] are the unconditional half's. ``blocks`` are fnmatch patterns
    of module paths to distil as one block; by default the classes of diffusers. ``options`` are the fields of ``QuantizeConfig``.

    Raises UsageError, ArtifactError or EnvironmentProblem; nothing is written then.
    """
    config = QuantizeConfig.build(preset, **options)
    check_output(Path(output), force=force)
    model, scheduler, shape, details = _resolve(source, scheduler, sample_shape)
    _check_finite(model)
    request = Request(conditions, null_conditions, classes)
    calibration = calibration_source(
        request, config, model=model, model_config=details["model_config"], scheduler=scheduler, shape=shape
    )  # fmt: skip
    conditions = calibration.examples
    names = input_names(model, list(conditions))
    examples = {"timestep": torch.tensor([1.0, 2.0]), **{k: v[torch.arange(2) % len(v)] for k, v in conditions.items()}}
    generator = torch.Generator().manual_seed(0)
    examples[names[0]] = torch.randn(2, *shape, generator=generator)
    float_graph = capture(model, {name: examples[name] for name in names})
    decompose_attention(float_graph)
    plan = make_plan(float_graph, config)
    check_patterns(config.train, [layer.name for layer in plan.quantized])
    assign_blocks(float_graph, plan, blocks)

    def collect(seeds: range) -> Trajectories:
        return calibration.collect(_named(float_graph, names), seeds, progress)

    data = collect(range(config.seed, config.seed + config.calibration_samples))
    reference = collect(range(_REFERENCE_SEED + config.seed, _REFERENCE_SEED + config.seed + config.reference_samples))
    quantized = _copy_with_quantizers(float_graph, plan, data)
    seeds = min(config.calibration_samples, 8) * data.per_seed
    dilations = initialize(float_graph, quantized, data, seeds, config, progress)
    before = per_timestep_snr(quantized, reference, names)
    records = distill(float_graph, quantized, data, config, progress=progress) if config.iterations else []
    freeze(quantized)
    folded = fold_dilations(quantized)
    after = per_timestep_snr(quantized, reference, names)
    manifest = _manifest(config, details, names, shape, scheduler, data, plan, dilations, records, folded)
    manifest.details["calibration"] = calibration.record()
    manifest.details["snr_db"] = {"before_distillation": before, "after_distillation": after}
    with create_artifact(output, manifest, force=force) as folder:
        write_checkpoint(folder, quantized, reference)
    return Artifact(Path(output), manifest)


def _resolve(source: Any, scheduler: Any, sample_shape: tuple[int, ...] | None) -> tuple[nn.Module, Any, tuple[int, ...], dict[str, Any]]:
    """Model, scheduler, sample shape, and what the manifest says about them."""
    if isinstance(source, nn.Module):
        if scheduler is None or sample_shape is None:
            raise UsageError("a plain nn.Module needs scheduler= and sample_shape= (without the batch)")
        kind = type(source).__name__
        return (
            source.float().eval(),
            scheduler,
            tuple(sample_shape),
            {"model": kind, "component": None, "source": None, "model_config": {}, "pipeline_class": None},
        )
    from ..sources import load_source

    loaded = load_source(source)
    details = {
        "model": loaded.name,
        "component": loaded.component,
        "source": {"reference": loaded.reference, "sha256": loaded.sha256},
        "model_config": loaded.config,
        "pipeline_class": loaded.pipeline_class,
    }
    return loaded.model, scheduler or loaded.scheduler, tuple(sample_shape or loaded.sample_shape), details


def _check_finite(model: nn.Module) -> None:
    bad = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise ArtifactError(f"NaN or Inf in {len(bad)} weight tensor(s): {', '.join(bad[:5])}")


def _named(graph: GraphModule, names: list[str]) -> Any:
    def call(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        values = {names[0]: sample, "timestep": timestep, **conditions}
        result: torch.Tensor = graph(*[values[name] for name in names])
        return result

    return call


def _copy_with_quantizers(float_graph: GraphModule, plan: Plan, data: Trajectories) -> GraphModule:
    """A copy of the graph, rewritten; the plan's nodes follow into the copy."""
    quantized = deepcopy(float_graph)
    by_name = {node.name: node for node in quantized.graph.nodes}
    for layer in plan.layers:
        layer.node = by_name[layer.node.name]
    insert_quantizers(quantized, plan, data.timesteps)
    return quantized


@torch.no_grad()
def per_timestep_snr(model: GraphModule, reference: Trajectories, names: list[str]) -> list[float]:
    """SNR in dB of the quantized output against the float one, at each calibrated timestep, over the reference seeds."""
    result = []
    call = _named(model, names)
    for row, timestep in enumerate(reference.timesteps):
        samples, expected = reference.samples[row], reference.outputs[row]
        got = call(samples, timestep.repeat(len(samples)), **reference.conditions)
        noise = (got - expected).double().pow(2).sum().clamp(min=1e-30)
        result.append(round(float(10 * torch.log10(expected.double().pow(2).sum() / noise)), 4))
    return result


def _manifest(config: QuantizeConfig, details: dict[str, Any], names: list[str], shape: tuple[int, ...], scheduler: Any, data: Trajectories,
              plan: Plan, dilations: list[DilationRecord], records: list[BlockRecord],
              folded: dict[str, list[str]]) -> Manifest:  # fmt: skip
    scheduler_config = {k: v for k, v in dict(scheduler.config).items() if not k.startswith("_") or k == "_class_name"}
    members: dict[str, list[str]] = {}
    for layer in plan.quantized:
        for quantizer in layer.quantizers:
            members.setdefault(quantizer, []).append(layer.name)
    return Manifest(
        kind="checkpoint",
        model=details["model"],
        quantization=config.model_dump(mode="json"),
        scheduler={"class": type(scheduler).__name__, "config": scheduler_config, "sha256": sha256_json(scheduler_config)},
        timesteps=data.timesteps.tolist(),
        details={
            **{k: v for k, v in details.items() if k != "model"},
            "sample_shape": list(shape),
            "inputs": names,
            "conditions": {
                k: {"dtype": str(v.dtype).removeprefix("torch."), "shape": list(v.shape[1:])} for k, v in data.conditions.items()
            },
            "layers": [layer.record() for layer in plan.quantized],
            "float_layers": [layer.record() for layer in plan.left_float],
            "float_mac_share": plan.float_share,
            "quantizers": [{"name": name, "layers": layers} for name, layers in members.items()],
            "skip_halves": "one quantizer over the concatenation",
            "dilation": [{**asdict(r), "folded_into": folded.get(r.quantizer, [])} for r in dilations],
            "distillation": [asdict(r) for r in records],
        },
    )
