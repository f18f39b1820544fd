"""A small video network that answers a prompt: garments that move, by what they are and where they go.

Of Latte's class (diffusers `LatteTransformer3DModel`): attention within a frame, to the prompt, and over the frames of one place. A prompt
is two tokens, a garment of Fashion-MNIST and a direction; no prompt is zeros.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.networks.data import training_data
from benchmarks.networks.network import scheduler_of
from benchmarks.networks.weights import WEIGHTS, work_folder
from dq_deploy.errors import UsageError
from dq_deploy.progress import Progress
from training.data import CLASSES, to_unit_range
from training.state import STATE_NAME, TrainingState

FRAMES, SIZE, TOKEN = 4, 16, 32
SHAPE = (1, FRAMES, SIZE, SIZE)
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0))
_STEP = 2  # pixels between two frames
_BATCH, _WARMUP, _DROPOUT, _SAVE_S = 16, 100, 0.1, 60.0


class Garments(nn.Module):
    """Velocity [N, 1, 4, 16, 16] of a noisy video under prompts [N, 2, 32]."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import LatteTransformer3DModel

        torch.manual_seed(0)
        self.transformer: Any = LatteTransformer3DModel(
            num_attention_heads=3, attention_head_dim=32, in_channels=1, out_channels=1, num_layers=3, sample_size=SIZE, patch_size=4,
            cross_attention_dim=96, caption_channels=TOKEN, video_length=FRAMES, attention_bias=True, norm_type="ada_norm_single",
            norm_elementwise_affine=False, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        )  # fmt: skip

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """See the class."""
        predicted: torch.Tensor = self.transformer(sample, timestep, encoder_hidden_states).sample
        return predicted


def prompts(garments: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Tokens [N, 2, 32] of garments [N] and directions [N]."""
    words = torch.randn(len(CLASSES) + len(DIRECTIONS), TOKEN, generator=torch.Generator().manual_seed(3))
    return torch.stack([words[garments], words[len(CLASSES) + directions]], dim=1)


def every_prompt() -> torch.Tensor:
    """All of them [40, 2, 32], in an order in which neighbours differ in both words."""
    index = torch.arange(len(CLASSES) * len(DIRECTIONS))
    return prompts(index % len(CLASSES), (index + index // len(CLASSES)) % len(DIRECTIONS))


def moving(images: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Pictures [N, 1, 16, 16] as videos [N, 1, 4, 16, 16] that move past the middle."""
    middle = (FRAMES - 1) / 2
    ways = torch.tensor(DIRECTIONS)[directions]
    margin = int(middle * _STEP)
    padded = nn.functional.pad(images, (margin,) * 4, value=-1.0)
    videos = []
    for image, (down, right) in zip(padded, ways.tolist(), strict=True):
        starts = [(margin - round((f - middle) * _STEP * down), margin - round((f - middle) * _STEP * right)) for f in range(FRAMES)]
        videos.append(torch.stack([image[:, y : y + SIZE, x : x + SIZE] for y, x in starts], dim=1))
    return torch.stack(videos)


def trained() -> Garments:
    """The network with the weights that ``train`` has made. Raises UsageError where it has not."""
    file = _folder() / WEIGHTS
    if not file.is_file():
        raise UsageError(f"no trained weights in {file.parent}", "python -m benchmarks.groups train")
    model = Garments().eval()
    model.load_state_dict(load_file(file))
    return model


def train(minutes: float, progress: Progress) -> int:
    """Train for ``minutes`` more, from what there is; the steps that were taken in all. Its weights are those of the moving average."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    model = Garments().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    warmup = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARMUP))
    state = TrainingState(model, EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, power=0.75), optimizer, warmup)
    if (folder / STATE_NAME).is_file():
        state.restore(folder)
    images, labels = training_data()
    images = nn.functional.avg_pool2d(to_unit_range(images), 2)
    scheduler = scheduler_of("velocity")
    started = saved = time.monotonic()
    with progress("training garments (seconds)", round(60 * minutes)) as advance:
        reported, mean = 0, 1.0
        while (now := time.monotonic()) < started + 60 * minutes:
            mean += 0.02 * (_step(state, images, labels, scheduler) - mean)
            if now > saved + _SAVE_S:
                state.save(folder, {"network": "garments"})
                saved = now
            advance(int(now - started) - reported, f"step {state.step}, loss {mean:.4f}")
            reported = int(now - started)
    state.save(folder, {"network": "garments"})
    _write_weights(state, folder)
    return state.step


def _step(state: TrainingState, images: torch.Tensor, labels: torch.Tensor, scheduler: Any) -> float:
    torch.manual_seed(1 + state.step)
    picked, directions = torch.randint(len(images), (_BATCH,)), torch.randint(len(DIRECTIONS), (_BATCH,))
    clean = moving(images[picked], directions)
    words = prompts(labels[picked], directions) * (torch.rand(_BATCH) > _DROPOUT)[:, None, None]
    noise, timesteps = torch.randn_like(clean), torch.randint(1000, (_BATCH,))
    output = state.model(scheduler.add_noise(clean, noise, timesteps), timesteps.float(), words)
    return state.descend((output - scheduler.get_velocity(clean, noise, timesteps)).square().mean())


def _folder() -> Path:
    return work_folder() / "trained" / "garments"


def _write_weights(state: TrainingState, folder: Path) -> None:
    model = Garments()
    model.load_state_dict(state.model.state_dict())
    state.ema.copy_to(model.parameters())
    partial = folder / f"{WEIGHTS}.partial"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial, {"steps": str(state.step)})
    partial.replace(folder / WEIGHTS)
