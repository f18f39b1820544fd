"""The documentation, run on a tiny model (``documented.SOURCES``): the commands of the pages in their order, and all Python of two of them.

What a page says is not run (``<!-- not run: REASON -->``) is parsed (test_commands.py).
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDPMPipeline
from PIL import Image

from dq_deploy.cli import cli, run
from tests.docs.documented import PAGES, SHELL, SMALL, Fence, beside, fences, mapped, mapped_python, our_arguments, shell_lines
from tests.flow import Flow
from tests.nightly import mostly_nightly
from tests.tiny_pipelines import tiny_stable_diffusion

# What a page's command needs beside torch: where it is not installed, the command is parsed only (test_commands.py).
_NEEDS = {"build-engine": "tensorrt_rtx", "layers": "tensorrt_rtx"}


class Runner:
    """Runs pages in one folder. A command that another page has run with the same options has been run."""

    def __init__(self, folder: Path, pipeline: Path) -> None:
        self.folder, self.pipeline, self.done = folder, pipeline, dict[str, int]()
        self.small = folder / "small.json"
        self.small.write_text(json.dumps(SMALL))

    def command(self, arguments: list[str]) -> None:
        words = mapped(arguments, self.pipeline, self.small)
        if not find_spec(_NEEDS.get(words[0], "torch")):
            return
        if words[0] == "report":  # its engines are there if they could be built
            words = [word for word in words if not word.endswith("engine") or Path(word).exists()]
        # Options as click has understood them: one that a page spells out and the tests overrule makes no other command.
        key = f"{words[0]} {sorted(cli.commands[words[0]].make_context(words[0], words[1:]).params.items())}"
        if key not in self.done:
            self.done[key] = run(words)
        assert self.done[key] == 0, words

    def python(self, fence: Fence, **names: Any) -> dict[str, Any]:
        exec(compile(mapped_python(fence.text, self.pipeline), fence.where, "exec"), names)
        return names


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory, flow_pipeline: Path) -> Runner:
    return Runner(tmp_path_factory.mktemp("pages"), flow_pipeline)


@pytest.mark.parametrize("page", ["docs/quickstart.md", "README.md"])
def test_a_page(page: str, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runner.folder)
    names: dict[str, Any] = {}
    for fence in fences(page):
        if fence.not_run:
            continue
        if fence.language in SHELL:
            for arguments in filter(None, map(our_arguments, shell_lines(fence))):
                if arguments[0] != "doctor":  # what it finds on a machine of tests is no matter of the page
                    runner.command(arguments)
        elif fence.language == "python":
            names = runner.python(fence, pipe=DDPMPipeline.from_pretrained(runner.pipeline))
    assert Image.open("grid.png").width > 0
    if page == "README.md":
        assert names["verdict"]
        assert names["pipe"](num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)
    else:
        assert Image.open("picture.png").size == (8, 8)
        assert "<html" in Path("report.html").read_text()[:200]


_OTHERS = (
    "choosing-bits", "deploy-tensorrt", "fp8", "large-models", "nvfp4", "report", "schedules", "troubleshooting", "weight-only",
    "your-own-model",
)  # fmt: skip


@pytest.mark.parametrize("page", mostly_nightly([f"docs/{name}.md" for name in _OTHERS], "docs/choosing-bits.md"))
def test_a_page_for_who_has_artefacts(page: str, tmp_path: Path, flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a page makes itself goes beside what is there: it begins where it likes."""
    monkeypatch.chdir(tmp_path)
    for name, path in {"checkpoint": flow.checkpoint, "bundle": flow.bundles["qdq"], "float-bundle": flow.bundles["float"]}.items():
        shutil.copytree(path, name)
    if "path/to/text-pipeline" in PAGES[page].read_text():
        tiny_stable_diffusion().save_pretrained("path/to/text-pipeline")
        Path("prompts.txt").write_text("a cat\na dog\n")
    runner = Runner(tmp_path, flow.pipeline)
    for fence in fences(page):
        if fence.language in SHELL and not fence.not_run:
            for arguments in filter(None, map(our_arguments, shell_lines(fence))):
                if arguments[0] != "doctor":
                    runner.command(beside(arguments))


def test_a_module_of_your_own(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runner.folder)
    (fence,) = (fence for fence in fences("docs/your-own-model.md") if fence.language == "python")
    names = runner.python(fence)
    assert names["noise"].shape == (2, 1, 8, 8)
    assert names["checkpoint"].manifest.details["float_mac_share"] == pytest.approx(0.0555, abs=0.001)


def test_a_command_that_fails_is_found(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runner.folder)
    with pytest.raises(AssertionError, match="gone"):
        runner.command(["inspect", "gone"])
