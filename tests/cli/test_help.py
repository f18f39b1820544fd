"""Help fits a terminal of 80 columns, every command is told of in one whole line, and every option says what it is without being given."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dq_deploy.cli import cli
from dq_deploy.commands import COMMANDS
from dq_deploy.commands.headings import HeadedCommand
from dq_deploy.engines.descriptors.registry import builders
from dq_deploy.engines.devices.gpu_names import GPUS, gpu_named
from tests.command_line import Cli
from tests.flow import Flow

# Without a value nothing is done of what these ask for.
NO_DEFAULT = {"--report", "--repo-id", "--license", "--message", "--config", "--prompts", "--lora", "--checkpoint", "--min-snr",
              "--max-ratio", "--layer", "--plot", "--compare", "--auto-bits", "--auto-steps", "--switch", "--output", "--keep", "--allow",
              "--hardware-compatibility", "--timing-cache", "--engine", "--height", "--width", "--tokens"}  # fmt: skip


def text(*arguments: str) -> str:
    return CliRunner().invoke(cli, [*arguments, "--help"], terminal_width=80, prog_name="dq-deploy").output


def test_every_command_in_one_whole_line_in_the_order_of_the_work() -> None:
    lines = text().partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == [command.name for command in COMMANDS]
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)
    assert lines[0].endswith(str(COMMANDS[0].short_help))


@pytest.mark.parametrize("command", [(), *((str(command.name),) for command in COMMANDS)])
def test_eighty_columns(command: tuple[str, ...]) -> None:
    assert max(map(len, text(*command).splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_defaults_are_told(command: click.Command) -> None:
    context = click.Context(command, info_name=command.name)
    for option in (parameter for parameter in command.params if isinstance(parameter, click.Option)):
        record = option.get_help_record(context)
        if option.is_flag or option.required or NO_DEFAULT & set(option.opts):
            continue
        assert record is not None
        assert "[default" in record[1], option.opts


@pytest.mark.parametrize("command", [c for c in COMMANDS if isinstance(c, HeadedCommand)], ids=lambda command: command.name)
def test_every_option_stands_under_one_heading(command: HeadedCommand) -> None:
    context = click.Context(command, info_name=command.name, help_option_names=["-h", "--help"])
    under = [option for _, options in command.parameters_by_heading(context) for option in options]
    assert "Other" not in dict(command.parameters_by_heading(context))
    assert len(under) == len(set(under))
    assert {*under} == {option for option in command.get_params(context) if isinstance(option, click.Option)}
    shown = text(str(command.name)).splitlines()
    assert [line for line in shown if line.endswith(":") and not line.startswith(" ")] == [f"{heading}:" for heading in command.headings]
    assert not any(line.startswith("Options:") for line in shown)


def test_an_option_without_a_heading_is_shown_all_the_same() -> None:
    command = HeadedCommand("some", headings={"First": "--a"}, params=[click.Option(["--a"], help="A."), click.Option(["--b"], help="B.")])
    shown = CliRunner().invoke(command, ["--help"]).output
    first, _, other = shown.partition("Other:")
    assert ("--a" in first, "--b" in first, "--b" in other) == (True, False, True)


def test_long_lists_of_options_have_headings() -> None:
    assert [c.name for c in COMMANDS if len(c.params) > 20 and not isinstance(c, HeadedCommand)] == []


def completed(words: str) -> set[str]:
    environment = {"_DQ_DEPLOY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    return {line.partition(",")[2] for line in CliRunner().invoke(cli, [], prog_name="dq-deploy", env=environment).output.split()}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("dq-deploy quantize x --preset w4", {"w4a8", "w4a8-fp8", "w4a4", "w4a16"}),
        ("dq-deploy quantize built", {"builtin:fashion-mnist-dit", "builtin:fashion-mnist-text", "builtin:fashion-mnist-unet"}),
        ("dq-deploy quantize x --device cu", {"cuda", "cuda:0", "cuda:1"}),
        ("dq-deploy build-engine x --compute-capability 12", {"12.0", "12.1"}),
        ("dq-deploy build-engine x --allow zero-p", {"zero-point"}),
        ("dq-deploy quantize x --preset z", set()),
        ("dq-deploy quantize x --for sm_8", {"sm_80", "sm_86", "sm_89"}),
        ("dq-deploy advise --compute-capability 12", {"12.0", "12.1"}),
    ],
)
def test_values_are_completed(words: str, found: set[str]) -> None:
    assert completed(words) == found


@pytest.mark.parametrize("name", ["4090", "GeForce RTX 4090 Ti", "rtx 4090 laptop gpu"])
def test_a_gpu_by_its_name(name: str) -> None:
    assert gpu_named(name) == ("RTX 4090", "8.9")


def test_every_gpu_is_found_under_its_own_name_and_no_number_is_one() -> None:
    assert all(gpu_named(name) == (name, capability) for capability, names in GPUS.items() for name in names)
    assert {*builders()["tensorrt-rtx"].building.compute_capabilities} <= GPUS.keys()
    assert [gpu_named(text) for text in ("8.9", "89", "RTX", "")] == [None] * 4


def test_the_page_has_every_gpu() -> None:
    page = (Path(__file__).parents[2] / "docs" / "deploy-tensorrt.md").read_text()
    assert [capability for capability, names in GPUS.items() if f"| {capability} | {', '.join(names)} |" not in page] == []


def test_a_gpu_in_the_place_of_its_compute_capability(cli: Cli, flow: Flow, tmp_path: Path) -> None:
    ended = cli("build-engine", flow.bundles["qdq"], "-o", tmp_path / "o", "--backend", "tensorrt-rtx", "--compute-capability", "4090")
    assert ended.code == 2
    assert "cannot build for compute capability 4090\nhint: the RTX 4090 has compute capability 8.9; it builds for: 7.5" in ended.err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("quantize", "builtin:fashion-mnist-unit"), "did you mean fashion-mnist-unet"),
        (("quantize", "builtin:fashion-mnist-unet", "--preset", "w8a"), "did you mean w8a8"),
        (("quantize", "builtin:fashion-mnist-unet", "--method", "dilatquant"), "did you mean dilatequant?"),
        (("quantise", "builtin:fashion-mnist-unet"), "Did you mean 'quantize'?"),
    ],
)
def test_a_typo_shows_the_nearest_name(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], hint: str) -> None:
    ended = cli(*arguments, "-o", tmp_path / "o")
    assert ended.code == 2
    assert hint in ended.err


def test_a_typo_in_a_layer_shows_the_nearest(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    ended = cli("quantize", flow.pipeline, "-o", tmp_path / "o", "--keep", "down_blocks.0.resnet.0.conv1=float", "--dry-run")
    assert (ended.code, "did you mean down_blocks.0.resnets.0.conv1" in ended.err) == (2, True)
    ended = cli("inspect", flow.checkpoint, "--layer", "*resnet.0.conv1")
    assert (ended.code, "hint: did you mean" in ended.err) == (2, True)


def test_layers_of_a_bundle_say_how_to_get_an_engine(cli: Cli, flow: Flow) -> None:
    ended = cli("layers", flow.bundles["qdq"])
    assert ended.code == 3
    assert f"an engine is needed here\nhint: make one from it: dq-deploy build-engine {flow.bundles['qdq']} -o ENGINE" in ended.err
