"""Train an unconditional UNet on Fashion-MNIST, from nothing or onwards from a pipeline: ``python -m training.train_unet --help``."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel

from dq_deploy.console import Output
from dq_deploy.errors import DqDeployError, UsageError
from dq_deploy.sources import builtin_path, load_source
from training.data import Batch, load_images, training_batch
from training.state import STATE_NAME, TrainingState, read_settings

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


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of the IDX files.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the state and the pipeline.")
@click.option("--init", default=None, help="Go on from this pipeline's weights: a folder, a hub id or a built-in.")
@click.option(
    "--model-config", type=click.Path(path_type=Path), default=None, help="config.json of a UNet2DModel.  [default: the built-in's]"
)
@click.option("--steps", type=click.IntRange(1), default=5905, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True, help="Peak; cosine to 0.")
@click.option("--warmup", type=click.IntRange(0), default=200, show_default=True, help="Steps of linear warm-up.")
@click.option("--weight-decay", type=click.FloatRange(0), default=1e-2, show_default=True)
@click.option("--ema-decay", type=click.FloatRange(0, 1, max_open=True), default=0.9995, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="bf16 means autocast.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads.")
@click.option("--checkpoint-every", type=click.IntRange(1), default=200, show_default=True, help="Steps between saved states.")
@click.option(
    "--max-minutes", type=click.FloatRange(0, min_open=True), default=None, help="Save and stop after this time; --resume goes on."
)
@click.option("--resume", is_flag=True, help="Go on from the state in the output folder.")
def main(data: Path, output: Path, device: str, threads: int | None, checkpoint_every: int, max_minutes: float | None, resume: bool,
         init: str | None, model_config: Path | None, **options: Any) -> None:  # fmt: skip
    """Train an unconditional UNet2DModel on Fashion-MNIST and write a DDPMPipeline folder (EMA weights, fp16)."""
    out = Output()
    try:
        if threads:
            torch.set_num_threads(threads)
        network = _network(init, model_config)
        settings = Settings(**options, init=init, model_config=json.dumps(network.config, sort_keys=True))
        _prepare(output, settings, resume)
        state = _new_state(network, settings, torch.device(_device(device)))
        if resume:
            state.restore(output)
            out.note(f"going on after step {state.step}")
        images = load_images(data, "train", network.config["sample_size"])
        train(state, images, network.scheduler, settings, output, out, checkpoint_every=checkpoint_every, max_minutes=max_minutes)
    except DqDeployError as error:
        out.error(error)
        sys.exit(error.exit_code)
    except Stop as stop:
        out.note(f"{stop}; --resume goes on")
        sys.exit(stop.exit_code)
    out.text(f"wrote {output / 'pipeline'}")


def train(state: TrainingState, images: torch.Tensor, scheduler: Any, settings: Settings, output: Path, out: Output, *,
          checkpoint_every: int, max_minutes: float | None = None) -> None:  # fmt: skip
    """Take the state to its last step, saving it and the pipeline every ``checkpoint_every`` steps. ``images``: uint8 [N, 1, S, S].

    Raises Stop (time is up, or a signal came) after saving, UsageError when the loss is no longer finite.
    """
    deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
    mean = None
    with _stop_signals() as stopped, out.progress("training", settings.steps - state.step) as advance:
        while state.step < settings.steps:
            loss = _train_step(state, images, scheduler, settings)
            mean = loss if mean is None else mean + (loss - mean) / _LOSS_MEMORY
            advance(note=f"loss {mean:.4f}, learning rate {state.schedule.get_last_lr()[0]:.1e}")
            timed_out = time.monotonic() > deadline
            if state.step % checkpoint_every == 0 or state.step == settings.steps or stopped or timed_out:
                state.save(output, asdict(settings))
                write_pipeline(state, scheduler, output / "pipeline")
            if state.step < settings.steps and (stopped or timed_out):
                raise Stop(f"stopped after step {state.step} of {settings.steps}", 0 if timed_out else 130)


def _train_step(state: TrainingState, images: torch.Tensor, scheduler: Any, settings: Settings) -> float:
    device = next(state.model.parameters()).device
    # Dropout, where a configuration has it, draws from the global generator: seeded by step, it needs no saved state either.
    torch.manual_seed(settings.seed + state.step)
    batch = training_batch(images, state.step, batch_size=settings.batch_size, timesteps=len(scheduler.alphas_cumprod), seed=settings.seed)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        loss = denoising_loss(state.model, scheduler, batch, device).mean()
    if not torch.isfinite(loss):
        raise UsageError(f"the loss is {loss.item()} at step {state.step}", "lower --learning-rate and --resume from the last saved state")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.schedule.step()
    state.ema.step(state.model.parameters())
    state.step += 1
    return loss.item()


def denoising_loss(model: torch.nn.Module, scheduler: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    """Mean squared error of the predicted noise, for each sample: [B]."""
    noisy = scheduler.add_noise(batch.images, batch.noise, batch.timesteps)
    predicted: torch.Tensor = model(noisy.to(device), batch.timesteps.to(device)).sample
    return (predicted.float() - batch.noise.to(device)).square().mean(dim=(1, 2, 3))


def write_pipeline(state: TrainingState, scheduler: Any, path: Path) -> None:
    """Write the EMA weights in fp16 as a pipeline folder, replacing the one that an earlier step wrote."""
    unet = UNet2DModel.from_config(state.model.config)
    state.ema.copy_to(unet.parameters())
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline: Any = DDPMPipeline(unet.half(), scheduler)
    pipeline.save_pretrained(partial)
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


@dataclass(frozen=True)
class _Network:
    """What is trained: the UNet's configuration, the noise scheduler and, when going on from a pipeline, its weights."""

    config: dict[str, Any]
    scheduler: Any
    weights: dict[str, torch.Tensor] | None = None


def _network(init: str | None, model_config: Path | None) -> _Network:
    if init is not None:
        if model_config is not None:
            raise UsageError("--init brings its own configuration: leave --model-config out")
        source = load_source(init)
        if source.config["_class_name"] != "UNet2DModel" or source.scheduler.config.prediction_type != "epsilon":
            raise UsageError(f"{init} is no UNet2DModel that predicts epsilon")
        return _Network(source.config, DDPMScheduler.from_config(source.scheduler.config), source.model.state_dict())
    path = model_config or builtin_path("fashion-mnist-unet") / "unet" / "config.json"
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    return _Network(json.loads(path.read_bytes()), DDPMScheduler())


def _new_state(network: _Network, settings: Settings, device: torch.device) -> TrainingState:
    torch.manual_seed(settings.seed)
    model = UNet2DModel.from_config(network.config)
    if network.weights is not None:
        model.load_state_dict(network.weights)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.warmup, settings.steps)
    return TrainingState(model, EMAModel(model.parameters(), decay=settings.ema_decay), optimizer, schedule)


def _prepare(output: Path, settings: Settings, resume: bool) -> None:
    """Refuse an output folder that does not fit, before any work."""
    exists = (output / STATE_NAME).is_file()
    if not resume:
        if output.exists() and any(output.iterdir()):
            raise UsageError(
                f"output {output} already exists", "--resume goes on with the run in it" if exists else "choose another folder"
            )
        output.mkdir(parents=True, exist_ok=True)
        return
    if not exists:
        raise UsageError(f"{output} holds no {STATE_NAME} to resume from", "leave --resume out to start")
    former, wanted = read_settings(output), asdict(settings)
    changed = [f"{name} was {former.get(name)!r}, not {value!r}" for name, value in wanted.items() if former.get(name) != value]
    if changed:
        raise UsageError(
            f"the run in {output} has other settings: {'; '.join(changed)}", "resume with the same options, or start in another folder"
        )


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU on this machine", "--device cpu")
    return name


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


if __name__ == "__main__":
    main()
