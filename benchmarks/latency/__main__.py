"""``python -m benchmarks.latency``: time every model that has no result yet, then write RESULTS.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dq_deploy.console import Output, to_json
from dq_deploy.engines.bench import bench
from dq_deploy.engines.openvino.int8_kernels import int8_saturates
from dq_deploy.quantization import load_checkpoint

from .preparing import prepare
from .profile import kernel_times
from .quality import trajectory_snr
from .report import page
from .startup import startup
from .subjects import SUBJECTS, WORK
from .timing import contenders, pictures, static_pairs

_HERE = Path(__file__).parent


@click.command()
@click.option("--models", default=",".join(SUBJECTS), show_default=True)
@click.option("--batches", default="1,2,8", show_default=True)
@click.option("--runs", default=20, show_default=True, help="Rounds; a large model takes a quarter of them.")
@click.option("--threads", default=1, show_default=True, help="Of every contender.")
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True, help="torch.compile takes a minute a batch size.")
@click.option("--again", is_flag=True, help="Time anew what is recorded.")
@click.option("--page-only", is_flag=True, help="Write the page from what is recorded.")
@click.option("--note", default="", help="What a reader must know of how it was timed; goes onto the page.")
@click.option("--work", type=click.Path(path_type=Path), default=WORK, show_default=True, help="For artefacts; may be deleted.")
@click.option("--results", type=click.Path(path_type=Path), default=_HERE / "results", show_default=True)
@click.option("--page", "page_file", type=click.Path(path_type=Path), default=_HERE / "RESULTS.md", show_default=True)
def main(models: str, batches: str, runs: int, threads: int, compiled: bool, again: bool, page_only: bool, note: str, work: Path,
         results: Path, page_file: Path) -> None:  # fmt: skip
    """Our W8A8 models on the CPU engines beside PyTorch, ONNX Runtime, OpenVINO and their own quantizers, interleaved in one run."""
    out, names = Output(), models.split(",")
    if unknown := [name for name in names if name not in SUBJECTS]:
        raise click.UsageError(f"no model {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    results.mkdir(parents=True, exist_ok=True)
    for name in () if page_only else names:
        file = results / f"{name}.json"
        if again or not file.exists():
            found = {
                **_measured(name, [int(b) for b in batches.split(",")], runs, threads, work / name, out, compiled=compiled),
                "note": note,
            }
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(to_json(found), indent=1) + "\n")
            partial.replace(file)
    recorded = {name: json.loads((results / f"{name}.json").read_text()) for name in SUBJECTS if (results / f"{name}.json").exists()}
    if not recorded:
        raise click.UsageError("nothing is recorded yet")
    page_file.write_text(page(recorded))
    out.text(page_file.read_text())


def _measured(name: str, batches: list[int], runs: int, threads: int, work: Path, out: Output, *, compiled: bool) -> dict[str, Any]:
    subject = SUBJECTS[name]
    work.mkdir(parents=True, exist_ok=True)
    made = prepare(subject, work, out.progress)
    large = name == "unet-86m"
    runs, batches = (max(3, runs // 4), batches[:1]) if large else (runs, batches)
    everyone = contenders(subject, made, threads, compiled=compiled and not large)
    found = bench(everyone, batches=batches, runs=runs, progress=out.progress).to_json()
    found |= {"threads": threads, "parameters": sum(p.numel() for p in subject.module(work).parameters())}
    found["snr"] = trajectory_snr(everyone, load_checkpoint(made.checkpoint))
    found["static_pairs"] = static_pairs(everyone, batches=batches, runs=2 * runs, progress=out.progress)
    found["profiles"] = {
        "float": kernel_times(made.bundle("float"), everyone[0], threads=threads, integer=True, ours=False),
        "ours": kernel_times(made.bundle("tensorrt"), everyone[0], threads=threads, integer=not int8_saturates()),
        **(
            {"ours, saturating INT8": kernel_times(made.bundle("tensorrt"), everyone[0], threads=threads, integer=True)}
            if int8_saturates()
            else {}
        ),
    }
    if subject.pictures:
        found["pictures"] = pictures(subject, made, threads, out.progress)
        found["startup"] = startup(subject, made, out.progress)
    return found


if __name__ == "__main__":
    main()
