"""Options, checks and messages that every training command shares."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel

from dq_deploy.console import Output
from dq_deploy.errors import DqDeployError, UsageError
from dq_deploy.quantization.calibration.choice import settings
from dq_deploy.sources import builtin_path, load_source
from training.loop import Recipe, Settings, Stop, train
from training.state import STATE_NAME, TrainingState, read_settings


def training_options(*, steps: int, batch_size: int, ema_decay: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of a training command; the defaults that differ are given."""
    options = [
        click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of the IDX files."),
        click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the state and the pipeline."),
        click.option("--init", default=None, help="Go on from this pipeline's weights: a folder, a hub id or a built-in."),
        click.option(
            "--model-config", type=click.Path(path_type=Path), default=None, help="config.json of the network.  [default: the built-in's]"
        ),
        click.option("--steps", type=click.IntRange(1), default=steps, show_default=True),
        click.option("--batch-size", type=click.IntRange(1), default=batch_size, show_default=True),
        click.option(
            "--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True, help="Peak; cosine to 0."
        ),
        click.option("--warmup", type=click.IntRange(0), default=200, show_default=True, help="Steps of linear warm-up."),
        click.option("--weight-decay", type=click.FloatRange(0), default=1e-2, show_default=True),
        click.option("--ema-decay", type=click.FloatRange(0, 1, max_open=True), default=ema_decay, show_default=True),
        click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="bf16 means autocast."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
        click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads."),
        click.option("--compile", "compiled", is_flag=True, help="torch.compile: minutes to start, then faster; needs a C++ compiler."),
        click.option("--checkpoint-every", type=click.IntRange(1), default=200, show_default=True, help="Steps between saved states."),
        click.option(
            "--max-minutes", type=click.FloatRange(0, min_open=True), default=None, help="Save and stop after this time; --resume goes on."
        ),
        click.option("--resume", is_flag=True, help="Go on from the state in the output folder."),
    ]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def run(recipe: Recipe, *, data: Path, output: Path, device: str, threads: int | None, compiled: bool, checkpoint_every: int,
        max_minutes: float | None, resume: bool, init: str | None, model_config: Path | None, **options: Any) -> None:  # fmt: skip
    """Train what the recipe describes and end the process with the documented exit code; ``options`` are the other `Settings`."""
    out = Output()
    try:
        if threads:
            torch.set_num_threads(threads)
        network = _network(recipe, init, model_config)
        settings = Settings(**options, init=init, model_config=json.dumps(network.config, sort_keys=True))
        _prepare(output, settings, resume)
        state = _new_state(recipe, network, settings, torch.device(_device(device)))
        if resume:
            state.restore(output)
            out.note(f"going on after step {state.step}")
        if compiled:
            state.model.compile()  # in place: names, configuration and saved files stay those of the plain network
        training_set = recipe.load(data, network.config)
        train(state, training_set, network.scheduler, settings, output, out, recipe=recipe, checkpoint_every=checkpoint_every,
              max_minutes=max_minutes)  # fmt: skip
    except DqDeployError as error:
        out.error(error)
        sys.exit(error.exit_code)
    except Stop as stop:
        out.note(f"{stop}; --resume goes on")
        sys.exit(stop.exit_code)
    out.text(f"wrote {output / 'pipeline'}")


@dataclass(frozen=True)
class _Network:
    """What is trained: the network's configuration, the noise scheduler and, when going on from a pipeline, its weights."""

    config: dict[str, Any]
    scheduler: Any
    weights: dict[str, torch.Tensor] | None = None


def _network(recipe: Recipe, init: str | None, model_config: Path | None) -> _Network:
    if init is not None:
        if model_config is not None:
            raise UsageError("--init brings its own configuration: leave --model-config out")
        source = load_source(init)
        if source.config["_class_name"] != recipe.class_name or source.scheduler.config.prediction_type != "epsilon":
            raise UsageError(f"{init} is not a {recipe.class_name} that predicts epsilon")
        return _Network(source.config, DDPMScheduler.from_config(settings(source.scheduler)), recipe.weights(source))
    path = model_config or builtin_path(recipe.builtin) / recipe.component / "config.json"
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    return _Network(json.loads(path.read_bytes()), DDPMScheduler())


def _new_state(recipe: Recipe, network: _Network, settings: Settings, device: torch.device) -> TrainingState:
    torch.manual_seed(settings.seed)
    model = recipe.build(network.config)
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
    former, now = read_settings(output), asdict(settings)
    changed = [f"{name} was {former.get(name)!r}, not {value!r}" for name, value in now.items() if former.get(name) != value]
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
