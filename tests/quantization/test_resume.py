"""Killing a run and going on. The run is a process of its own, because nothing else ends as suddenly."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

from dq_deploy import cli
from dq_deploy.errors import UsageError
from dq_deploy.quantization import quantize
from dq_deploy.quantization.distillation.block_trainer import Steps
from dq_deploy.quantization.running.work_folder import WorkFolder, work_path
from tests.flow import snapshot
from tests.tiny import FAST, SHAPE, PlainUNet, scheduler

OPTIONS: dict[str, Any] = {
    **FAST,
    "preset": "w4a4",
    "rounding": "gptq",
    "steps": 3,
    "calibration_samples": 4,
    "iterations": 12,
    "batch_size": 4,
}
FLAGS = ("--preset", "w4a4", "--steps", "2", "--calibration-samples", "2", "--batch-size", "4", "--iterations", "9")


def ending_at(stage: str, number: int) -> None:
    """Let this process get the signal ``number`` when a stage has been saved, or in the middle of a block's training ("in <block>")."""
    save, take = WorkFolder.save, Steps.take
    taken = 0

    def ending_save(self: WorkFolder, name: str, tensors: Any, record: Any) -> None:
        save(self, name, tensors, record)
        if stage in (name, isinstance(record, dict) and record.get("block")):
            os.kill(os.getpid(), number)

    def ending_take(self: Steps) -> float:
        nonlocal taken
        taken += stage == f"in {self.trainer.block.name}"
        if taken == 7:
            os.kill(os.getpid(), number)
        return take(self)

    WorkFolder.save, Steps.take = ending_save, ending_take  # type: ignore[method-assign]


def in_a_process(output: Path, stage: str, number: int, arguments: list[str] | None = None, **options: Any) -> tuple[int, str]:
    """Exit code (negative: the signal) and stderr of a run, by command line if there are ``arguments``."""
    log = output.with_name("stderr")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.stderr = log.open("w")
            torch.set_num_threads(1)  # the threads of the parent are not there after a fork
            ending_at(stage, number)
            if arguments is not None:
                code = cli.run(arguments)
            else:
                quantize(PlainUNet(), output, scheduler=scheduler(), sample_shape=SHAPE, **{**OPTIONS, **options})
                code = 0
        except BaseException:  # noqa: BLE001  the child ends here
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = log.read_text()
    log.unlink()
    return code, text


# First: the processes of the others have then what torch.export made of this network (tests/captures.py).
def test_resume_without_an_interrupted_run_just_runs(tmp_path: Path) -> None:
    options = {**OPTIONS, "iterations": 0, "resume": True}
    quantize(PlainUNet(), tmp_path / "out", scheduler=scheduler(), sample_shape=SHAPE, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["block", "end-to-end"])
def test_killed_again_and_again_it_ends_in_the_same_bytes(kind: str, tmp_path: Path) -> None:
    code, text = in_a_process(tmp_path / "through", "never", signal.SIGKILL, distillation=kind)
    assert code == 0, text
    output = tmp_path / "out"
    stages = [
        "calibration",
        "initial",
        "rounding-0000",
        "rounding-0003",
        "rounding",
        *(["in embed.2", "down", "in last"] if kind == "block" else ["in whole network"]),
    ]
    for index, stage in enumerate(stages):
        code, text = in_a_process(output, stage, signal.SIGKILL, distillation=kind, resume=index > 0)
        assert code == -signal.SIGKILL, (stage, text)
        assert not output.exists()
        assert work_path(output).exists()
    finished = {p.stem for p in work_path(output).glob("*.safetensors")}
    assert {"calibration", "initial", "reference", "rounding", "rounding-0007"} <= finished
    code, text = in_a_process(output, "never", signal.SIGKILL, distillation=kind, resume=True)
    assert code == 0, text
    assert snapshot(output) == snapshot(tmp_path / "through")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "through"]


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert in_a_process(output, "last", signal.SIGKILL)[0] == -signal.SIGKILL
    before = {p.name: p.stat().st_mtime_ns for p in work_path(output).glob("*.safetensors")}
    code, text = in_a_process(output, "in last", signal.SIGKILL, resume=True)  # would be killed if it trained that block
    assert code == 0, text
    assert len(before) > 10


def test_an_interrupt_says_that_resume_goes_on(flow_pipeline: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["quantize", str(flow_pipeline), "-o", str(output), *FLAGS, "-q"]
    code, text = in_a_process(output, "in mid_block.resnets.0", signal.SIGINT, arguments)
    assert code == 130, text
    assert "Traceback" not in text
    first, last = filter(None, text.splitlines())
    assert first == f"warning: finished stages are kept in {output}.resume: the same command with --resume continues from there"
    assert last == "warning: interrupted; nothing half-written is left"
    stages = snapshot(work_path(output))
    assert {"run.json", "calibration.safetensors", "block-0000.safetensors"} <= set(stages)
    assert not any(name.startswith("scratch") for name in stages)
    # Without --resume nothing is lost and nothing begun; with other options the difference is named.
    code, text = in_a_process(output, "never", signal.SIGINT, arguments)
    assert code == 2
    assert "interrupted run that was writing" in text
    assert "hint: --resume continues it, --force discards it and starts anew" in text
    code, text = in_a_process(output, "never", signal.SIGINT, [*arguments, "--resume", "--iterations", "10", "--seed", "7"])
    assert code == 2
    assert "was another one: iterations was 9, now 10; seed was 0, now 7\n" in text
    assert snapshot(work_path(output)) == stages
    code, text = in_a_process(output, "never", signal.SIGINT, [*arguments, "--resume"])
    assert code == 0, text
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_another_model_is_not_resumed(tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert in_a_process(output, "calibration", signal.SIGKILL)[0] == -signal.SIGKILL
    other = PlainUNet()
    with torch.no_grad():
        other.down.weight[0] += 1e-3
    with pytest.raises(UsageError, match=r'was another one: weights was "\w+", now "\w+"\n'):
        quantize(other, output, scheduler=scheduler(), sample_shape=SHAPE, resume=True, **OPTIONS)
