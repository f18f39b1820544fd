"""``advise`` and ``quantize --for``: by the engines' descriptors alone, and what it prints can be typed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click
import pytest

from dq_deploy.cli import cli as commands
from dq_deploy.commands import COMMANDS
from dq_deploy.engines.descriptors.registry import builders
from dq_deploy.engines.devices.advice import Advice, Device, FormatSupport, advise, device_named, support
from dq_deploy.engines.devices.gpu_names import GPUS
from dq_deploy.formats.presets import PRESETS
from tests.command_line import Cli, assert_refused
from tests.flow import Flow

OPS, OP_NAMES = ("gemm", "conv"), {"gemm": "matrix products", "conv": "convolutions"}
PAGE = Path(__file__).parents[2] / "docs" / "which-card.md"


def told(cli: Cli, *arguments: str) -> Advice:
    ended = cli("advise", *arguments, "--format", "json")
    assert ended.code == 0, ended.err
    return Advice.model_validate(json.loads(ended.out))


@pytest.mark.parametrize("capability", GPUS)
def test_every_generation_gets_what_its_engine_documents(capability: str) -> None:
    found = advise(device_named(capability))
    engine = builders()[found.backend]
    assert found.preset in PRESETS
    form = "fp8" if found.preset == "fp8" else "int8"
    assert all(engine.documents(form, op, capability) for op in ("conv", "gemm"))
    assert not engine.building.compute_capabilities or capability in engine.building.compute_capabilities


def test_rtx_is_told_weights_alone_where_it_documents_no_more(cli: Cli) -> None:
    found = told(cli, "--gpu", "RTX 3090", "--backend", "tensorrt-rtx")
    assert (found.device, found.compute_capability, found.preset, found.backend) == ("RTX 3090", "8.6", "w4a16", "tensorrt-rtx")
    assert "documents INT4 weights" in found.why
    assert any("INT8 matrix products, INT8 convolutions of quantized activations there, and does not document" in n for n in found.notes)
    assert found.commands[-1] == "dq-deploy build-engine bundle -o engine --backend tensorrt-rtx --compute-capability 8.6"


def test_a_cpu(cli: Cli) -> None:
    found = told(cli, "--gpu", "cpu")
    assert (found.compute_capability, found.preset, found.target, found.backend) == (None, "w8a8", "qdq", "openvino")
    assert all(row.executed for row in found.support if row.format == "int8" and not row.weights_alone)


@pytest.mark.parametrize(
    ("gpu", "backend"), [("RTX 4090", "tensorrt"), ("RTX 4090", "tensorrt-rtx"), ("H200", "tensorrt"), ("cpu", "openvino")]
)
def test_the_commands_can_be_typed(gpu: str, backend: str, cli: Cli) -> None:
    """Every command is one, and takes the options that are given to it."""
    found = told(cli, "my pipeline", "--gpu", gpu, "--backend", backend)
    names = {str(command.name): command for command in COMMANDS}
    for line in found.commands:
        program, name, *arguments = shlex.split(line)
        assert program == "dq-deploy"
        names[name].make_context(name, arguments, parent=click.Context(commands))
    assert shlex.split(found.commands[0])[2] == "my pipeline"


def test_a_transformer_has_no_convolutions(tmp_path: Path, flow: Flow) -> None:
    from dq_deploy.engines.devices.advice import products_of

    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "P", "transformer": ["diffusers", "DiTTransformer2DModel"]}))
    assert products_of(str(tmp_path)) == ("gemm",)
    assert products_of(str(flow.pipeline)) == products_of("owner/name") == ("gemm", "conv")


@pytest.mark.parametrize("text", ["sm_89", "SM89", "8.9", "compute_89", "4090", "RTX 4090"])
def test_a_device_by_any_of_its_names(text: str) -> None:
    assert device_named(text).capability == "8.9"


REFUSED = {
    ("--gpu", "RTX 4091"): ("unknown device 'RTX 4091'", "did you mean RTX 4090"),
    ("--compute-capability", "6.1"): ("nothing is known of compute capability 6.1", "known: 7.5, "),
    ("--gpu", "H100", "--backend", "tensorrt-rtx"): ("TensorRT-RTX cannot build for compute capability 9.0", "9.0 is Hopper, which only"),
    ("--gpu", "cpu", "--backend", "tensorrt"): ("TensorRT does not run on a CPU", "name the GPU"),
    ("--gpu", "RTX 4090", "--backend", "openvino"): ("OpenVINO does not run on a GPU here", "take tensorrt-rtx, tensorrt"),
    ("--compute-capability", "4090"): ("'4090' is a GPU's name", "the RTX 4090 has compute capability 8.9; --gpu takes names"),
    ("--gpu", "L4", "--compute-capability", "8.9"): ("both name a device", "give one of them"),
    ("--gpu", ""): ("unknown device ''", "give a GPU such as"),
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_is_refused(arguments: tuple[str, ...], cli: Cli) -> None:
    assert_refused(cli("advise", *arguments), 2, *REFUSED[arguments])


def test_the_preset_of_a_card_gives_way_to_one_that_was_asked_for(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    def preset(*arguments: str) -> tuple[str, str]:
        common = ("--dry-run", "--steps", "2", "--calibration-samples", "2", "--format", "json")
        ended = cli("quantize", flow.pipeline, "-o", tmp_path / "o", *arguments, *common)
        assert ended.code == 0, ended.err
        options = json.loads(ended.out)["options"]
        return f"w{options['weight_bits']}a{options['activation_bits']}", ended.err

    expected = advise(device_named("8.6")).preset
    found, said = preset("--for", "sm_86")
    assert (
        found,
        f"preset {expected} for compute capability 8.6 (TensorRT documents matrix products and convolutions in INT8" in said,
    ) == (expected, True)
    found, said = preset("--for", "sm_86", "--preset", "w4a4")
    assert (found, "preset" in said) == ("w4a4", False)
    assert_refused(cli("quantize", flow.pipeline, "-o", tmp_path / "o", "--for", "Voodoo 5"), 2, "unknown device 'Voodoo 5'")


def support_table() -> list[tuple[str, str, str, str, str, str]]:
    """(device, engine, INT8, FP8, FP4, INT4 weights) of every generation and of CPUs, in words: the table of docs/which-card.md."""
    rows = []
    for device in (*(Device(capability, capability) for capability in GPUS), Device("CPU", None)):
        known = list(support(device))
        for engine in dict.fromkeys(row.engine for row in known):
            int8, fp8, fp4 = (_cell([row for row in known if row.engine == engine], name) for name in ("int8", "fp8", "fp4"))
            weights = next((row.known for row in known if row.engine == engine and row.weights_alone and row.format == "int4"), "–")
            rows.append((device.name, engine, int8, fp8, fp4, weights))
    return rows


def _cell(rows: list[FormatSupport], format_: str) -> str:
    """What is known of a format's products: once where it is the same of both kinds."""
    found = {row.op: row.known for row in rows if row.format == format_ and not row.weights_alone}
    if len(set(found.values())) == 1 and len(found) == len(OPS):
        return next(iter(found.values()))
    return "; ".join(f"{OP_NAMES[op]} {known}" for op, known in found.items()) or "–"


def test_the_page_has_the_table_of_the_code() -> None:
    page = PAGE.read_text()
    assert [row for row in support_table() if f"| {' | '.join(row)} |" not in page] == []
    assert sum(line.startswith(("| 7", "| 8", "| 9", "| 1", "| CPU")) for line in page.splitlines()) == len(support_table())
