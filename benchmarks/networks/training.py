"""Training on Fashion-MNIST for so many minutes: enough for a network to denoise, not to draw well."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LambdaLR

from dq_deploy.progress import Progress
from training.data import TrainingSet, training_batch
from training.state import STATE_NAME, TrainingState

from .conditions import low_resolution
from .data import as_samples, training_data
from .network import Network, scheduler_of
from .weights import WEIGHTS, work_folder

_BATCH, _WARMUP, _SEED, _SAVE_S = 16, 20, 1, 60.0
_SIGMA_DATA, _LOG_SIGMA = 0.5, (-1.2, 1.2)  # EDM's


def train(network: Network, minutes: float, progress: Progress) -> int:
    """Train for ``minutes`` more, from what there is; returns the steps that were taken in all. Its weights are EMA's."""
    folder = work_folder() / "trained" / network.name
    folder.mkdir(parents=True, exist_ok=True)
    model = network.fresh().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=network.learning_rate)
    warmup = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARMUP))
    state = TrainingState(model, EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, power=0.75), optimizer, warmup)
    if (folder / STATE_NAME).is_file():
        state.restore(folder)
    images, labels = training_data()
    data = TrainingSet(images, labels)
    scheduler = scheduler_of(network.time)
    started = saved = time.monotonic()
    with progress(f"training {network.name} (seconds)", round(60 * minutes)) as advance:
        reported, mean = 0, 1.0
        while (now := time.monotonic()) < started + 60 * minutes:
            loss = _step(state, network, data, scheduler)
            mean += 0.02 * (loss - mean)
            if now > saved + _SAVE_S:
                state.save(folder, {"network": network.name})
                saved = now
            advance(int(now - started) - reported, f"step {state.step}, loss {mean:.4f}")
            reported = int(now - started)
    state.save(folder, {"network": network.name})
    _write_weights(state, network, folder)
    return state.step


def _step(state: TrainingState, network: Network, data: TrainingSet, scheduler: Any) -> float:
    torch.manual_seed(_SEED + state.step)
    batch = training_batch(data, state.step, batch_size=_BATCH, timesteps=1000, seed=_SEED)
    clean = as_samples(batch.images, network.shape)
    noisy, times, target = noised(clean, batch.timesteps, scheduler)
    conditions = {}
    if network.conditions == "classes":
        conditions = {network.condition: batch.labels}
    elif network.conditions == "pictures":
        conditions = {network.condition: low_resolution(batch.images)}
    elif network.conditions == "tokens":
        conditions = {name: value[torch.randperm(len(value))] for name, value in network.inputs(_BATCH).items()}
    with torch.autocast("cpu", torch.bfloat16):
        output = state.model(noisy, times, **conditions)
    return state.descend((output[:, : target.shape[1]].float() - target).square().mean())


def noised(clean: torch.Tensor, timesteps: torch.Tensor, scheduler: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the network sees of ``clean`` [N, ...], the time [N] that it is given, and its target."""
    noise = torch.randn_like(clean)
    if hasattr(scheduler, "alphas_cumprod"):
        noisy = scheduler.add_noise(clean, noise, timesteps)
        velocity = scheduler.config.prediction_type == "v_prediction"
        return noisy, timesteps.float(), scheduler.get_velocity(clean, noise, timesteps) if velocity else noise
    if "Flow" in type(scheduler).__name__:
        share = torch.rand(len(clean)).reshape(-1, 1, 1, 1)
        return (1 - share) * clean + share * noise, 1000 * share.flatten(), noise - clean
    sigma = torch.exp(_LOG_SIGMA[0] + _LOG_SIGMA[1] * torch.randn(len(clean))).reshape(-1, 1, 1, 1)
    total = sigma**2 + _SIGMA_DATA**2
    noisy = clean + sigma * noise
    target = (clean - _SIGMA_DATA**2 / total * noisy) / (sigma * _SIGMA_DATA / total.sqrt())
    return noisy / total.sqrt(), sigma.flatten().log() / 4, target


def _write_weights(state: TrainingState, network: Network, folder: Path) -> None:
    """Once, at the end: figures are of these, and would be of others with every minute."""
    model = network.fresh()
    model.load_state_dict(state.model.state_dict())
    state.ema.copy_to(model.parameters())
    partial = folder / f"{WEIGHTS}.partial"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial, {"steps": str(state.step)})
    partial.replace(folder / WEIGHTS)
