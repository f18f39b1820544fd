"""The command reference, from the commands themselves: what ``--help`` prints, in place of the marker in docs/cli.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import click

from dq_deploy.cli import cli
from dq_deploy.commands.headings import HeadedCommand

MARKER = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference where a page asks for it."""
    if MARKER not in markdown:
        return markdown
    return markdown.replace(MARKER, reference())


def reference() -> str:
    """Every command as Markdown: what it does, how it is called, every option."""
    context = click.Context(cli, info_name="dq-deploy", **cli.context_settings)
    return "\n".join(line for name in cli.commands for line in _command(name, cli.commands[name], context))


def _command(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    yield from (f"## {name}", "", _prose(command.help or ""), "")
    # No width folds the line: the page does that.
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield from ("```text", usage, "```", "")
    if not isinstance(command, HeadedCommand):
        yield from _options(command.get_params(context), context)
        return
    for heading, options in command.parameters_by_heading(context):
        yield from (f"**{heading}**", "")
        yield from _options(options, context)


def _options(parameters: Iterable[click.Parameter], context: click.Context) -> Iterator[str]:
    for parameter in parameters:
        record = parameter.get_help_record(context)
        if record is not None and record[1]:  # an argument stands in the usage
            yield from (f"`{record[0]}`", f":   {record[1].replace('<', '&lt;')}", "")


def _prose(text: str) -> str:
    """A help text as Markdown: a paragraph that click leaves as it is is a block here."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        "```text\n{}\n```".format(p.removeprefix("\b\n")) if p.startswith("\b") else p.replace("<", "&lt;") for p in paragraphs
    )
