"""``python -m benchmarks.scale``: run every stage, then write RESULTS.md. A stage that was measured already is not run again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from dq_deploy.artifacts import sha256_json
from dq_deploy.console import Output
from dq_deploy.engines.devices.machine import machine_info

from .measuring import Watch, cpu_seconds, folder_bytes, peak_bytes
from .report import write_report
from .setting import SMALL, Setting
from .stages import COST_ONLY, OUTPUTS, STAGES

_HERE = Path(__file__).parent
_WORK = Path(tempfile.gettempdir()) / "dq-deploy-benchmark-scale"


@click.group(invoke_without_command=True)
@click.option("--small", is_flag=True, help="A UNet of 2 levels instead of Stable Diffusion 1.5's: every stage in seconds.")
@click.option("--block-out-channels", help="Channels of each level, with commas between them.")
@click.option("--layers-per-block", type=click.IntRange(1))
@click.option("--sample-size", type=click.IntRange(8), help="Edge of the latents.")
@click.option("--presets", default="w8a8,w6a6,w4a8,w4a4", show_default=True, help="One after the other; the first's cost is judged.")
@click.option("--dilation")
@click.option("--steps", type=click.IntRange(1), help="T, the rows of every table.")
@click.option("--calibration-samples", type=click.IntRange(2))
@click.option("--work", type=click.Path(path_type=Path), default=_WORK, show_default=True, help="For artefacts of 4 GB; may be deleted.")
@click.option("--results", type=click.Path(path_type=Path), default=_HERE / "results", show_default=True)
@click.option("--page", type=click.Path(path_type=Path), default=_HERE / "RESULTS.md", show_default=True)
@click.option(
    "--stages",
    default=",".join(STAGES),
    show_default=True,
    help="Which to run, in this order.",
)
@click.option("--anew", is_flag=True, help="Forget what was measured.")
@click.option("--note", default="", help="What a reader must know of how it was measured; goes onto the page.")
@click.option("--keep-work", is_flag=True, help="Keep the work folder when all is done.")
@click.pass_context
def main(context: click.Context, /, small: bool, block_out_channels: str | None, presets: str, work: Path, results: Path, page: Path,
         stages: str, anew: bool, note: str, keep_work: bool, **given: Any) -> None:  # fmt: skip
    """A Stable-Diffusion-1.5-sized UNet: module → checkpoint → both bundles → TensorRT-RTX engine, measured stage by stage."""
    if context.invoked_subcommand:
        return
    options = {name: value for name, value in given.items() if value is not None}
    if block_out_channels:
        options["block_out_channels"] = tuple(map(int, block_out_channels.split(",")))
    chosen = stages.split(",")
    if unknown := [name for name in chosen if name not in STAGES]:
        raise click.UsageError(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    out = Output()
    done: dict[Setting, dict[str, Any]] = {}
    if anew:
        shutil.rmtree(results, ignore_errors=True)
    for preset in presets.split(","):
        setting = replace(SMALL if small else Setting(), preset=preset, **options)
        kept, folder = results / preset, work / sha256_json(setting.to_json())[:12]
        if anew:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        kept.mkdir(parents=True, exist_ok=True)
        run = [name for name in chosen if not done or name not in COST_ONLY]
        with out.progress(preset, len(run)) as advance:
            for name in run:
                recorded(setting, name, folder, kept)
                advance(1, name)
        done[setting] = {name: found for name in STAGES if (found := known(setting, name, kept))}
        if not keep_work:
            shutil.rmtree(folder)
    write_report(done, page, out, note)


def recorded(setting: Setting, name: str, folder: Path, results: Path) -> dict[str, Any]:
    """What a stage came to: as it is recorded for this setting, or else from running it."""
    if (before := known(setting, name, results)) is not None:
        return before
    found = _measured(setting, name, folder)
    if isinstance(modules := found["result"].get("modules"), list):
        (folder / "modules.txt").write_text("\n".join(modules))
        found["result"]["modules"] = len(modules)
    (results / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def known(setting: Setting, name: str, results: Path) -> dict[str, Any] | None:
    """What is recorded of a stage for this setting."""
    path = results / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found if found and found["setting"] == setting.to_json() else None


def _measured(setting: Setting, name: str, folder: Path) -> dict[str, Any]:
    """Run a stage in a child process and watch it."""
    arguments = json.dumps({"setting": setting.to_json(), "stage": name, "folder": str(folder)})
    command = [sys.executable, "-m", "benchmarks.scale", "child", arguments]
    load = f"{os.getloadavg()[0]:.1f} processes were running when the first stage began."
    watch, start = Watch(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as stdout:
        process = subprocess.Popen(command, stdout=stdout, text=True)  # noqa: S603  our own module
        watch.run(process)
        wall = time.perf_counter() - start
        if process.returncode:
            raise click.ClickException(f"stage {name} failed; the stages before it are kept, and the same command goes on from here")
        stdout.seek(0)
        found = json.load(stdout)
    output = OUTPUTS.get(name, name)
    return {
        "setting": setting.to_json(),
        "stage": name,
        "wall_s": wall,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu": machine_info()["cpu"],
        "load": load,
        **found,
        "children_peak_bytes": watch.children,
        "together_peak_bytes": max(watch.together, found["peak_bytes"]),
        "disk_bytes": folder_bytes(folder / output) if output else 0,
    }


@main.command(hidden=True)
@click.argument("arguments")
def child(arguments: str) -> None:
    """One stage, in this process; its result on stdout."""
    given = json.loads(arguments)
    result = STAGES[given["stage"]](Setting.from_json(given["setting"]), Path(given["folder"]), Output())
    click.echo(json.dumps({"result": result, "cpu_s": cpu_seconds(), "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
