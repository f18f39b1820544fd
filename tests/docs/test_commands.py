"""Every command in the documentation is one that exists, with options that it has."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

import dq_deploy
from dq_deploy.cli import cli
from dq_deploy.quantization.config import QuantizeConfig
from tests.docs.documented import PAGES, ROOT, SHELL, Fence, fences, inline_commands, our_arguments, shell_lines

_CONTEXT = click.Context(cli, info_name="dq-deploy", **cli.context_settings)
_FENCES = [fence for page in PAGES for fence in fences(page)]
_SHELL = [fence for fence in _FENCES if fence.language in SHELL]
_PYTHON = [fence for fence in _FENCES if fence.language == "python"]
# Programs that are not ours: nothing here can say more of them than that they are meant.
_OTHERS = (".", "tritonserver", "git", "cd", "hf", "trtexec", "nvidia-smi", "npm", "node", "g++", "./draw", "genai/bin/pip")


def parse(arguments: list[str]) -> None:
    """As click does before a command begins; raises click.UsageError."""
    name, *rest = arguments
    if name not in cli.commands:
        raise click.UsageError(f"no command '{name}'")
    cli.commands[name].make_context(name, rest, parent=_CONTEXT)


def check_foreign(words: list[str]) -> str | None:
    """What is wrong with a command that is not ours."""
    match words:
        case ["make", target, *_]:
            return None if re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) else "no such target"
        case ["python", "-m", "pytest", *arguments]:
            return next((f"no {a}" for a in arguments if a.startswith("tests/") and not (ROOT / a).exists()), None)
        case ["python", "-c", program]:
            ast.parse(program)
            return None
        case ["python3" | "python", "-m", module, *_]:
            return None if find_spec(module) else "no such module"
        case ["python", script, *_]:
            return None if (ROOT / script).is_file() else "no such file"
        case ["pip", "install", *what]:
            extras = [extra for word in what for found in re.findall(r"\[([\w,-]+)\]", word) for extra in found.split(",")]
            return next((f"no extra {e}" for e in extras if not re.search(rf"^{e} = ", (ROOT / "pyproject.toml").read_text(), re.M)), None)
        case [first, *_] if first in _OTHERS or first.startswith("_DQ_DEPLOY_COMPLETE="):
            return None
    return "a program that the tests do not know"


@pytest.mark.parametrize("fence", _SHELL, ids=lambda fence: fence.where)
def test_a_fence_of_commands(fence: Fence) -> None:
    commands = list(shell_lines(fence))
    assert commands, "an empty fence"
    for words in commands:
        arguments = our_arguments(words)
        if arguments is None:
            assert check_foreign(words) is None, words
        else:
            parse(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences(page: str) -> None:
    for name, *rest in inline_commands(page):
        if name in ("--help", "COMMAND"):
            continue
        assert name in cli.commands, name
        options = {option for parameter in cli.commands[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
        known = options | {"--help", "-h"}
        assert {word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"} <= known, rest


@pytest.mark.parametrize("fence", _PYTHON, ids=lambda fence: fence.where)
def test_a_fence_of_python(fence: Fence) -> None:
    for node in ast.walk(ast.parse(fence.text)):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dq_deploy"):
            continue
        assert node.attr in dq_deploy.__all__, node.attr
    for call in (node for node in ast.walk(ast.parse(fence.text)) if isinstance(node, ast.Call)):
        text = ast.unparse(call.func)
        if text.startswith("dq_deploy."):
            assert {k.arg for k in call.keywords} <= keywords_of(text.removeprefix("dq_deploy.")), ast.unparse(call)


def keywords_of(name: str) -> set[str]:
    """Keyword arguments of a public function, the options of a quantization among them."""
    parameters = inspect.signature(getattr(dq_deploy, name)).parameters
    options = name in ("quantize", "choose_bits", "estimate")
    return set(parameters) | (set(QuantizeConfig.model_fields) if options else set())


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("quantise SOURCE", "no command"),
        ("quantize SOURCE -o OUT --pre-set w8a8", "No such option"),
        ("quantize SOURCE", "Missing option"),
        ("export CHECKPOINT -o OUT --target tensorflow", "is not one of"),
        ("export CHECKPOINT OTHER -o OUT --target qdq", "unexpected extra argument"),
    ],
)
def test_a_wrong_command_is_found(line: str, wrong: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        parse(line.split())
    assert wrong in caught.value.format_message()


@pytest.mark.parametrize("line", ["make bread", "python -m nothing", "pip install dq-deploy[gpus]", "curl example.org", "python gone.py"])
def test_a_wrong_command_of_others_is_found(line: str) -> None:
    assert check_foreign(line.split())


def test_what_is_not_run_says_why() -> None:
    marks = {page: path.read_text().count("<!-- not run") for page, path in PAGES.items()}
    assert {page: sum(fence.not_run is not None for fence in fences(page)) for page in PAGES} == marks


COMPLETE = """
import os, sys
os.environ |= {environment}
from dq_deploy.cli import main
main()
"""


def completions(**environment: str) -> str:
    """What the shell gets when it asks ``dq-deploy`` to complete."""
    program = COMPLETE.format(environment=environment)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
    return done.stdout


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    script = completions(_DQ_DEPLOY_COMPLETE=f"{shell}_source")
    assert f"_DQ_DEPLOY_COMPLETE={shell}_complete" in script


def test_bash_completes_commands_options_and_choices(tmp_path: Path) -> None:
    script = tmp_path / "complete.bash"
    script.write_text(completions(_DQ_DEPLOY_COMPLETE="bash_source"))
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "complete -o nosort -F _dq_deploy_completion dq-deploy" in script.read_text()

    def complete(line: str) -> set[str]:
        words = line.split(" ")
        answer = completions(_DQ_DEPLOY_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
        return {row.partition(",")[2] for row in answer.splitlines()}

    assert complete("dq-deploy qua") == {"quantize"}
    assert complete("dq-deploy quantize --pre") == {"--preset"}
    assert complete("dq-deploy export x --target ") == {"qdq", "onnxruntime"}
