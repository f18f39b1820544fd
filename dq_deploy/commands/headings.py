"""Long helps under headings, which click has not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

PICTURES = "--prompts --negative-prompt --classes --image --mask --strength --control-image --ip-adapter-image"
"""What pictures are conditioned on, where a command asks for it."""

OUTPUT = "--output --force --format --quiet --help"
"""What stands under the last heading of every command that has headings."""

_COLUMN = 30  # as click's own: a longer name has its line to itself


class HeadedCommand(click.Command):
    """A command whose help has its options under ``headings``: each with the names of its options, in order, and blanks between them."""

    def __init__(self, *args: Any, headings: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.headings = headings

    def parameters_by_heading(self, ctx: click.Context) -> Iterator[tuple[str, list[click.Parameter]]]:
        """Every option under its heading; what no heading names stands under "Other"."""
        options = {name: option for option in self.get_params(ctx) if isinstance(option, click.Option) for name in option.opts}
        left = list(dict.fromkeys(options.values()))
        for heading, names in self.headings.items():
            under: list[click.Parameter] = [options[name] for name in names.split()]
            left = [option for option in left if option not in under]
            yield heading, under
        if left:
            yield "Other", [*left]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section a heading, their second columns aligned."""
        for heading, options in self.parameters_by_heading(ctx):
            records = [record for option in options if (record := option.get_help_record(ctx)) is not None]
            with formatter.section(heading):
                formatter.write_dl([(names.ljust(_COLUMN), text) for names, text in records], col_max=_COLUMN)
