"""A LoRA for the built-in UNet, trained on the images of one class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from dq_deploy.progress import Progress
from dq_deploy.sources import builtin_path
from dq_deploy.sources.lora import fused_copy
from training.data import CLASSES, TrainingSet, load_images, load_labels, training_batch

RANK, STEPS, BATCH, RATE = 4, 80, 16, 3e-3
STYLE = "Trouser"
_LAYERS = ["conv1", "conv2", "to_q", "to_k", "to_v", "to_out.0", "time_emb_proj"]


def _pipeline() -> Any:
    return DDPMPipeline.from_pretrained(builtin_path("fashion-mnist-unet"), torch_dtype=torch.float32, low_cpu_mem_usage=False)


def _adapted(pipeline: Any, weight: float = 1.0) -> dict[str, torch.nn.Parameter]:
    """The UNet with a fresh adapter, whose parameters come back; ``weight`` is how many times it is added."""
    torch.manual_seed(0)
    pipeline.unet.requires_grad_(requires_grad=False)
    alpha: Any = RANK * weight  # peft divides by the rank, and takes any number
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=alpha, target_modules=_LAYERS), pipeline.unet)
    return {name: parameter for name, parameter in pipeline.unet.named_parameters() if "lora_" in name}


def train(data: Path, file: Path, progress: Progress, *, steps: int = STEPS) -> None:
    """Train with the loss of the model itself, and write the adapter's matrices."""
    pipeline = _pipeline()
    parameters = _adapted(pipeline)
    chosen = load_labels(data, "train") == CLASSES.index(STYLE)
    images = TrainingSet(load_images(data, "train", pipeline.unet.config.sample_size)[chosen])
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = torch.zeros(())
    with progress("training the LoRA", steps) as advance:
        for step in range(steps):
            batch = training_batch(images, step, batch_size=BATCH, timesteps=pipeline.scheduler.config.num_train_timesteps, seed=0)
            noisy = pipeline.scheduler.add_noise(batch.images, batch.noise, batch.timesteps)
            loss = torch.nn.functional.mse_loss(pipeline.unet(noisy, batch.timesteps).sample, batch.noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            advance(1, f"loss {float(loss):.4f}")
    save_file({name: parameter.detach().contiguous() for name, parameter in parameters.items()}, file)


def merged(file: Path, folder: Path, weight: float) -> None:
    """Write the pipeline whose UNet has the adapter added ``weight`` times."""
    pipeline = _pipeline()
    parameters, trained = _adapted(pipeline, weight), load_file(file)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(trained[name])
    made: Any = DDPMPipeline(fused_copy(pipeline.unet), pipeline.scheduler)
    made.save_pretrained(folder)
