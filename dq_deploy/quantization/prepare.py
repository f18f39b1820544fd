"""Everything about a run that is settled before its first long step: the model, its graph, the plan, where calibration data comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from ..artifacts import sha256_json
from ..artifacts.manifest import tool_versions
from ..errors import ArtifactError, UsageError
from ..progress import Progress, silent
from ..sources import Source, copied, load_source, module_source
from .calibration.given_pictures import check_strength
from .calibration.noise_source import without_steps
from .calibration.of_each_size import calibration_of
from .calibration.pipeline_source import PipelineSource
from .calibration.prompt_lengths import unpadded_prompts_explained
from .calibration.schedules import plain_config
from .calibration.sized_source import SizedSource
from .calibration.source import CalibrationSource, Request, check_prompts
from .calling import CallForm, call_record
from .choices import SkipHalves
from .config import QuantizeConfig
from .distillation.trained import check_patterns
from .graph.blocks import assign_blocks
from .graph.calls import as_model, device_of
from .graph.capture import capture, check_alone
from .graph.plan import Plan, plan_with_branches
from .graph.positional import input_names
from .graph.roles import assign_roles
from .graph.skip_halves import arrange_skip_halves
from .initial.rotation_choice import check_rotation
from .integrity import not_finite
from .running.device import move
from .size_between import with_one_between


@dataclass(frozen=True)
class Prepared:
    """A captured model and what will be done with it. ``details`` is what the manifest says about the source."""

    config: QuantizeConfig
    details: dict[str, Any]
    scheduler: Any
    shape: tuple[int, ...]  # of a sample, without the batch
    names: list[str]  # of the graph's inputs, in its order
    calibration: CalibrationSource
    float_graph: GraphModule
    plan: Plan
    blocks: list[str] | None
    skip_halves: dict[str, Any]  # the manifest's entry

    @property
    def device(self) -> torch.device:
        """Where the float graph computes."""
        return device_of(self.float_graph)

    @property
    def first_source(self) -> CalibrationSource:
        """Where calibration data of the first size comes from."""
        return self.calibration.first if isinstance(self.calibration, SizedSource) else self.calibration

    def to(self, device: torch.device) -> None:
        """Let the float graph compute there, and so the denoiser of a pipeline that calibrates by running itself."""
        move(self.float_graph, device)
        if isinstance(self.first_source, PipelineSource):
            self.first_source.model.to(device)

    def identity(self) -> dict[str, Any]:
        """What must be equal for two runs to be the same run, as JSON values."""
        versions = tool_versions()
        return {
            **self.config.model_dump(mode="json"),
            "model": self.details["model"],
            "weights": _digest(self.float_graph.state_dict()),
            "graph": hashlib.sha256(self.float_graph.code.encode()).hexdigest()[:16],
            "scheduler": type(self.scheduler).__name__,
            "scheduler_config": sha256_json(plain_config(self.scheduler))[:16],
            "sample_shape": list(self.shape),
            "conditions": _digest(self.calibration.examples),
            "calibration": self.calibration.record(),
            "call": self.details.get("call"),
            "blocks": self.blocks,
            **{f"version of {name}": versions.get(name) for name in ("dq-deploy", "torch", "diffusers")},
        }


def prepare(source: Any, config: QuantizeConfig, request: Request, progress: Progress = silent) -> Prepared:
    """Load and capture a source, and plan its quantization.

    Raises UsageError, ArtifactError or EnvironmentProblem.
    """
    request.pictures, request.given_prompts  # noqa: B018  what cannot be read is said before a model is loaded
    check_strength(request.strength, config.steps)
    check_prompts(source, request)
    loaded, details = _resolve(source, request)
    request = request.with_own_prompts(loaded)
    loaded = replace(loaded, model=_trainable(loaded.model))
    model, scheduler = loaded.model, loaded.scheduler
    _check_finite(model)
    calibration = calibration_of(request, config, loaded)
    first_source = calibration.first if isinstance(calibration, SizedSource) else calibration
    if isinstance(first_source, PipelineSource):
        details |= first_source.details
    shape, conditions = calibration.shape, calibration.examples
    form = calibration.form or CallForm.plain(model, list(conditions))
    names = input_names(model, list(conditions), form)
    sources = calibration.sources if isinstance(calibration, SizedSource) else (calibration,)
    first, *others = [_examples(source, names) for source in sources]
    with unpadded_prompts_explained(calibration):
        float_graph = capture(model, first, progress, form=form, others=others)
    check_alone(float_graph)
    if isinstance(calibration, SizedSource):
        calibration = with_one_between(calibration, float_graph.meta["free"])
        details |= _sizes(calibration, float_graph)
    if (record := call_record(form, float_graph.meta["output"], names, type(model).__name__)) is not None:
        details["call"] = record
    if float_graph.meta["output"].several:
        if isinstance(calibration, SizedSource):
            raise UsageError(
                f"{type(model).__name__} returns several tensors, which are side by side in a graph's output: their sizes cannot be free",
                "leave --sizes and --tokens out",
            )
        calibration = without_steps(calibration, model)
    # Two ranges are a matter of activations; where these stay float, one product reads both.
    halves = arrange_skip_halves(float_graph, SkipHalves.JOINT if config.weight_only else config.skip_halves)
    plan = plan_with_branches(float_graph, config)
    check_rotation(plan, config)
    assign_roles(float_graph, plan.layers)
    check_patterns(config.train, {layer.name: layer.node.meta["roles"] for layer in plan.quantized})
    assign_blocks(float_graph, plan, request.blocks)
    chosen = list(request.blocks) if request.blocks is not None else None
    prepared = Prepared(config, details, scheduler, shape, names, calibration, float_graph, plan, chosen, halves)
    calibration.try_out(as_model(float_graph))
    return prepared


def _examples(source: CalibrationSource, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Inputs [2, ...] of the graph, in its order: noise, and the conditions of two samples."""
    found = {"timestep": torch.tensor([1.0, 2.0]), **{k: v[torch.arange(2) % len(v)] for k, v in source.examples.items()}}
    found[names[0]] = torch.randn(2, *source.shape, generator=torch.Generator().manual_seed(0))
    return {name: found[name] for name in names}


def _sizes(calibration: SizedSource, float_graph: GraphModule) -> dict[str, Any]:
    """What the manifest says of the sizes, and of the inputs' dimensions that are free."""
    found: list[dict[str, Any]] = [{**size.record(), "sample_shape": list(source.shape)} for size, source in calibration.each()]
    if calibration.between:
        found[-1]["calibrated"] = False
    return {"calibrated_sizes": found, "free": {name: size.record() for name, size in float_graph.meta["free"].items()}}


def _resolve(source: Any, request: Request) -> tuple[Source, dict[str, Any]]:
    """The loaded source, with the scheduler and sample shape that were requested, and what the manifest says about it."""
    scheduler, sample_shape, lora = request.scheduler, request.sample_shape, request.adapter
    if isinstance(source, nn.Module):
        if scheduler is None or sample_shape is None:
            raise UsageError("a plain nn.Module needs scheduler= and sample_shape= (without the batch)")
        if lora is not None:
            raise UsageError("a LoRA file is for a pipeline", "load it into the pipeline that the module belongs to, and quantize that")
        if request.beside:
            raise UsageError(f"a {' and a '.join(request.beside)} is for a folder", "give the pipeline object that has the ControlNet")
        loaded = module_source(source, scheduler, tuple(sample_shape))
        return loaded, {"model": loaded.name, "component": None, "source": None, "model_config": loaded.config, "pipeline_class": None}
    loaded = load_source(source, lora=lora, **request.beside)
    chosen = loaded.scheduler if scheduler is None else copied(scheduler)
    loaded = replace(loaded, scheduler=chosen, sample_shape=tuple(sample_shape or loaded.sample_shape))
    details = {
        "model": loaded.name,
        "component": loaded.component,
        "source": loaded.origin,
        "model_config": loaded.config,
        "pipeline_class": loaded.pipeline_class,
    }
    return loaded, details


def _trainable(model: nn.Module) -> nn.Module:
    """A copy of a model whose tensors were made in ``torch.inference_mode``, which autograd and torch.export refuse; any other as it is."""
    return deepcopy(model) if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())) else model


def _check_finite(model: nn.Module) -> None:
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    bad = [name for name, tensor in model.state_dict().items() if not_finite(tensor, mask=name in buffers)]
    if bad:
        raise ArtifactError(
            f"NaN or Inf in {len(bad)} weight tensor(s): {', '.join(bad[:5])}",
            "the float model itself cannot work with them: get its weights again, or convert them again (fp16 overflows above 65504)",
        )


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    """A short hash of named tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
