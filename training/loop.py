"""The loop that every training command shares: a step, the loss, saving, and stopping in good order."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from dq_deploy.console import Output
from dq_deploy.errors import UsageError
from dq_deploy.sources import Source
from training.data import Batch, TrainingSet, training_batch
from training.state import TrainingState

# The note beside the progress bar shows a mean over about this many steps: single batches of 32 differ by a factor of two.
_LOSS_MEMORY = 100


@dataclass(frozen=True)
class Settings:
    """What determines the result; resuming with others is refused."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int
    weight_decay: float
    ema_decay: float
    precision: str
    seed: int
    init: str | None
    model_config: str


class Stop(Exception):
    """The run ends before its last step, with its state saved."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


def step_loss(model: torch.nn.Module, scheduler: Any, data: TrainingSet, step: int, settings: Settings,
              device: torch.device) -> torch.Tensor:  # fmt: skip
    """The denoising loss over the batch of a step, for each sample: [B]."""
    batch = training_batch(data, step, batch_size=settings.batch_size, timesteps=len(scheduler.alphas_cumprod), seed=settings.seed)
    return denoising_loss(model, scheduler, batch, device)


def denoising_loss(model: torch.nn.Module, scheduler: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    """Mean squared error of the predicted noise, for each sample: [B]."""
    noisy = scheduler.add_noise(batch.images, batch.noise, batch.timesteps)
    conditions = {} if batch.labels is None else {"class_labels": batch.labels.to(device)}
    predicted: torch.Tensor = model(noisy.to(device), batch.timesteps.to(device), **conditions).sample
    return (predicted.float() - batch.noise.to(device)).square().mean(dim=(1, 2, 3))


Loss = Callable[[torch.nn.Module, Any, Any, int, Settings, torch.device], torch.Tensor]


def _denoiser_weights(source: Source) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = source.model.state_dict()
    return weights


@dataclass(frozen=True)
class Recipe:
    """What differs between the commands.

    ``build(config)`` gives a ``class_name`` of diffusers with fresh weights, ``save(network, scheduler, path)`` writes its pipeline folder,
    ``load(folder, config)`` gives the training data, ``builtin`` is the model shipped with the package and ``component`` its folder in it.
    ``loss(network, scheduler, data, step, settings, device)`` is each sample's loss at a step, [B], and ``weights(source)`` are those of a
    pipeline to go on from.
    """

    class_name: str
    build: Callable[[dict[str, Any]], Any]
    save: Callable[[Any, Any, Path], None]
    load: Callable[[Path, dict[str, Any]], Any]
    builtin: str
    component: str
    loss: Loss = step_loss
    weights: Callable[[Source], dict[str, torch.Tensor]] = _denoiser_weights


def train(state: TrainingState, data: Any, scheduler: Any, settings: Settings, output: Path, out: Output, *,
          recipe: Recipe, checkpoint_every: int, max_minutes: float | None = None) -> None:  # fmt: skip
    """Take the state to its last step, saving it and the pipeline every ``checkpoint_every`` steps.

    Raises Stop (time is up, or a signal came) after saving, UsageError when the loss is no longer finite.
    """
    deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
    mean = None
    with _stop_signals() as stopped, out.progress("training", settings.steps - state.step) as advance:
        while state.step < settings.steps:
            loss = _train_step(state, data, scheduler, settings, recipe.loss)
            mean = loss if mean is None else mean + (loss - mean) / _LOSS_MEMORY
            advance(note=f"loss {mean:.4f}, learning rate {state.schedule.get_last_lr()[0]:.1e}")
            timed_out = time.monotonic() > deadline
            if state.step % checkpoint_every == 0 or state.step == settings.steps or stopped or timed_out:
                state.save(output, asdict(settings))
                write_pipeline(state, scheduler, recipe, output / "pipeline")
            if state.step < settings.steps and (stopped or timed_out):
                raise Stop(f"stopped after step {state.step} of {settings.steps}", 0 if timed_out else 130)


def _train_step(state: TrainingState, data: Any, scheduler: Any, settings: Settings, loss_of: Loss) -> float:
    device = next(state.model.parameters()).device
    # Dropout, where a configuration has it, draws from the global generator: seeded by step, it needs no saved state either.
    torch.manual_seed(settings.seed + state.step)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        loss = loss_of(state.model, scheduler, data, state.step, settings, device).mean()
    if not torch.isfinite(loss):
        raise UsageError(f"the loss is {loss.item()} at step {state.step}", "lower --learning-rate and --resume from the last saved state")
    return state.descend(loss)


def write_pipeline(state: TrainingState, scheduler: Any, recipe: Recipe, path: Path) -> None:
    """Write the EMA weights in fp16 as a pipeline folder, replacing the one that an earlier step wrote."""
    network: Any = state.model
    model = recipe.build(network.config)
    state.ema.copy_to(model.parameters())
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    recipe.save(model.half(), scheduler, partial)
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the step under way ends first."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
