"""``python -m benchmarks.distillation``: measure, then write RESULTS.md and its picture. What is measured already is not measured again."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dq_deploy.console import Output

from .report import write_report
from .study import KINDS, RUNS, Setting

_HERE = Path(__file__).parent


@click.group(invoke_without_command=True)
@click.option("--source", default="builtin:fashion-mnist-unet", show_default=True)
@click.option("--preset", default="w4a4", show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--calibration-samples", default=32, show_default=True, help="Trajectories of 20 steps.")
@click.option("--pictures", default=16, show_default=True, help="Noises that the result is judged on.")
@click.option("--block-iterations", default="10,25,50,100", show_default=True, help="Iterations of each block, one run for each number.")
@click.option("--whole-iterations", default="25,50,100,200", show_default=True, help="Iterations of the whole network.")
@click.option("--results", type=click.Path(path_type=Path), default=_HERE / "results", show_default=True)
@click.pass_context
def main(context: click.Context, /, block_iterations: str, whole_iterations: str, results: Path, **options: Any) -> None:
    """Peak memory of both kinds of distillation at an equal batch, and quality over time."""
    if context.invoked_subcommand:
        return
    setting, out = Setting(**options), Output()
    results.mkdir(exist_ok=True, parents=True)
    # Alternating, so that a busy hour falls on both alike.
    numbers = [list(map(int, text.split(","))) for text in (block_iterations, whole_iterations)]
    longest = max(map(len, numbers))
    quality = [(kind, column[i]) for i in range(longest) for kind, column in zip(KINDS, numbers, strict=True) if i < len(column)]
    runs = [("quality", "block", 0), *(("memory", kind, 2) for kind in KINDS), *(("quality", *run) for run in quality)]
    folder = Path(tempfile.gettempdir()) / f"dq-deploy-benchmark-distillation-{'-'.join(map(str, options.values())).replace(':', '-')}"
    folder.mkdir(exist_ok=True)
    with out.progress("distillation", len(runs)) as advance:
        for what, kind, iterations in runs:
            path = results / f"{what}-{kind}-{iterations}.json"
            if not path.exists() or json.loads(path.read_text())["setting"] != asdict(setting):
                path.write_text(
                    json.dumps({"setting": asdict(setting), **_in_a_child(setting, what, kind, iterations, folder)}, indent=1) + "\n"
                )
            advance(1, path.stem)
    write_report(results, setting, _HERE / "RESULTS.md", out)


def _in_a_child(setting: Setting, what: str, kind: str, iterations: int, folder: Path) -> dict[str, Any]:
    arguments = json.dumps({"setting": asdict(setting), "what": what, "kind": kind, "iterations": iterations, "folder": str(folder)})
    command = [sys.executable, "-m", "benchmarks.distillation", "child", arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603  our own module
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@main.command(hidden=True)
@click.argument("arguments")
def child(arguments: str) -> None:
    """One run, in this process; its result on stdout."""
    given = json.loads(arguments)
    result = RUNS[given["what"]](Setting(**given["setting"]), given["kind"], given["iterations"], Path(given["folder"]))
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
