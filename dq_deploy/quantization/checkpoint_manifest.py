"""What a checkpoint's manifest says of the run that made it."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

from ..artifacts import Manifest, sha256_json
from ..artifacts.details import BlockLoss, RoundedLayer
from ..formats import ScaleSource
from .calibration.choice import changed
from .calibration.schedules import plain_config
from .graph.modules import named_quantizers
from .initial.initialize import Initialization
from .quantizers import computed_scale
from .run import Run


def checkpoint_manifest(run: Run, quantized: GraphModule, initial: Initialization, rounded: list[RoundedLayer],
                        losses: list[BlockLoss], folded: dict[str, list[str]]) -> Manifest:  # fmt: skip
    """The manifest of a checkpoint, but for what is measured of it."""
    prepared, data, config = run.prepared, run.data, run.config
    details, scheduler, plan = prepared.details, prepared.scheduler, prepared.plan
    sources = _sources(quantized)
    scheduler_config, ran = plain_config(scheduler), prepared.calibration.choice
    altered = changed(ran.scheduler, config.steps)
    members: dict[str, list[str]] = {}
    for layer in plan.quantized:
        for quantizer in layer.quantizers:
            members.setdefault(quantizer, []).append(layer.name)
    return Manifest(
        kind="checkpoint",
        model=details["model"],
        quantization=config.model_dump(mode="json"),
        scheduler={
            "class": type(scheduler).__name__,
            "config": scheduler_config,
            "sha256": sha256_json(scheduler_config),
            "calibrated_with": ran.record(),
            **({"changed": altered} if altered else {}),
        },
        timesteps=data.timesteps.tolist(),
        details={
            **{k: v for k, v in details.items() if k != "model"},
            "sample_shape": list(prepared.shape),
            "inputs": prepared.names,
            "conditions": {
                # of one timestep, which are those of all
                k: {"dtype": str(v.dtype).removeprefix("torch."), "shape": list(v.shape[1:])}
                for k, v in data.given(0).items()
            },
            "calibration": prepared.calibration.record(),
            "samples_per_seed": data.per_seed,
            "layers": [layer.record() for layer in plan.quantized],
            "float_layers": [layer.record() for layer in plan.left_float],
            "float_mac_share": plan.float_fraction,
            "quantizers": [{"name": name, "layers": layers, **sources.get(name, {})} for name, layers in members.items()],
            "skip_halves": prepared.skip_halves,
            "dilation": [{**r.model_dump(), "folded_into": folded.get(r.quantizer, [])} for r in initial.records],
            "dilation_rule": {"used": initial.rule, "mean_snr_db": initial.tried},
            "rounding": [r.model_dump() for r in rounded],
            "distillation": [r.model_dump() for r in losses],
        },
    )


def _sources(quantized: GraphModule) -> dict[str, dict[str, Any]]:
    """The manifest's word for each quantizer whose scales are computed; of others it has none."""
    return {name: computed_scale(made) for name, made in named_quantizers(quantized) if made.source is ScaleSource.COMPUTED}
