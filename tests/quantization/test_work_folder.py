from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dq_deploy.artifacts import check_output
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.quantization.running.work_folder import check_no_run, work_folder, work_path

ASKED = {"source": "a", "iterations": 3, "keep": {"x": 8}}


class Killed(BaseException):
    """Ends a run as an interrupt does."""


def interrupted(output: Path) -> None:
    """Leave the folder of a run that finished one stage."""
    with pytest.raises(Killed), work_folder(output, ASKED) as work:
        work.save("one", {"x": torch.arange(3.0)}, {"loss": 0.1})
        (work.scratch / "values").write_text("x")
        raise Killed


def test_a_stage_comes_back_bit_by_bit(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    with work_folder(tmp_path / "out", ASKED, resume=True) as work:
        assert work.stages == ["one"]
        stage = work.load("one")
        assert stage is not None
        assert torch.equal(stage.tensors["x"], torch.arange(3.0))
        assert stage.record == {"loss": 0.1}
        assert work.load("two") is None
        assert not list(work.scratch.iterdir())
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_must_be_resumed_or_forgotten(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    for refuse in (
        lambda: check_no_run(tmp_path / "out", resume=False, force=False),
        lambda: work_folder(tmp_path / "out", ASKED).__enter__(),
    ):
        with pytest.raises(UsageError, match=r"interrupted run .*out is kept in .*out\.resume\n--resume continues it, --force"):
            refuse()
    check_no_run(tmp_path / "out", resume=True, force=False)
    with work_folder(tmp_path / "out", ASKED, force=True) as work:
        assert work.stages == []
    assert not list(tmp_path.iterdir())


def test_another_run_is_not_resumed_and_all_that_differs_is_listed(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    other = {"source": "b", "iterations": 3, "keep": {"x": 4}, "blocks": ["down*"]}
    with pytest.raises(UsageError) as caught, work_folder(tmp_path / "out", other, resume=True):
        pass
    message = str(caught.value)
    assert 'blocks was not there, now ["down*"]; keep was {"x": 8}, now {"x": 4}; source was "a", now "b"' in message
    assert "iterations" not in message
    assert "--force" in message
    with work_folder(tmp_path / "out", ASKED, resume=True) as work:
        assert work.stages == ["one"]


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    with work_folder(tmp_path / "out", ASKED):
        for options in ({"resume": True}, {"force": True}, {}):
            with pytest.raises(UsageError, match="another run is writing .*out .*\nwait for it"):
                work_folder(tmp_path / "out", ASKED, **options).__enter__()
            with pytest.raises(UsageError, match="another run is writing"):
                check_no_run(tmp_path / "out", **{"resume": False, "force": False, **options})
        with work_folder(tmp_path / "other", ASKED):
            pass
    assert not list(tmp_path.iterdir())


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom dq_deploy.quantization.running.work_folder import work_folder\n"
        "with work_folder(sys.argv[1], {}) as work:\n    work.save('one', {}, 1)\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    with work_folder(tmp_path / "out", {}, resume=True) as work:
        assert work.stages == ["one"]


@pytest.mark.parametrize("error", [UsageError("x"), ArtifactError("x")])
def test_a_run_that_fails_by_its_input_leaves_nothing(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)), work_folder(tmp_path / "new" / "folder" / "out", ASKED) as work:
        work.save("one", {}, 1)
        raise error
    assert not list(tmp_path.iterdir())
    interrupted(tmp_path / "out")  # and what an earlier run has finished is not thrown away
    with pytest.raises(type(error)), work_folder(tmp_path / "out", ASKED, resume=True):
        raise error
    assert work_path(tmp_path / "out").exists()


def test_a_run_that_finished_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Killed), work_folder(tmp_path / "out", ASKED):
        raise Killed
    assert not list(tmp_path.iterdir())


def test_a_damaged_stage_says_so(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    path = work_path(tmp_path / "out") / "one.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with (
        pytest.raises(ArtifactError, match=r"one\.safetensors of the interrupted run is damaged.*\n.*--force"),
        work_folder(tmp_path / "out", ASKED, resume=True) as work,
    ):
        work.load("one")


def test_what_a_killed_writer_left_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    folder = work_path(tmp_path / "out")
    for name in (".two.safetensors.partial-abc", ".tmpXyZ"):
        (folder / name).write_text("half")
    with work_folder(tmp_path / "out", ASKED, resume=True) as work:
        assert work.stages == ["one"]
        assert {path.name for path in folder.iterdir()} == {"lock", "one.safetensors", "run.json", "scratch"}


@pytest.mark.parametrize("content", ["[]", "{", '{"source": 1, "source": 2}'])
def test_a_damaged_description_says_so(tmp_path: Path, content: str) -> None:
    interrupted(tmp_path / "out")
    (work_path(tmp_path / "out") / "run.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"run\.json is not the description of a run.*\n.*--force"):
        work_folder(tmp_path / "out", ASKED, resume=True).__enter__()


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    folder = work_path(tmp_path / "out")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    for options in ({"resume": True, "force": False}, {"resume": False, "force": True}):
        with pytest.raises(UsageError, match=r"out\.resume is in the way"):
            check_no_run(tmp_path / "out", **options)
        with pytest.raises(UsageError, match=r"out\.resume is in the way"):
            work_folder(tmp_path / "out", ASKED, **options).__enter__()
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_work_folder_is_no_artefact(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    with pytest.raises(UsageError, match="not an artefact of dq-deploy"):
        check_output(work_path(tmp_path / "out"), force=True)
