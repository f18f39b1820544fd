"""Measure what is missing and write the page: one file a network and form."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.engines.attention.report import slug
from dq_deploy.console import Output

from .report import PAGE, RESULTS, load, page
from .study import cells, measure


@click.command()
@click.option("--page-only", is_flag=True, help="Write the page again from what is recorded; builds nothing.")
@click.option("--only", default="", help="Measure the networks and forms whose name, as in 'UNet fp8', has this in it.")
def main(page_only: bool, only: str) -> None:
    """Build networks in every number format with TensorRT-RTX; writes results/ and FORMATS.md."""
    out = Output()
    pending = [cell for cell in cells() if only in " ".join(cell) and not _file(*cell).is_file()]
    if pending and not page_only:
        with out.progress("formats", len(pending)) as advance:
            for cell in pending:
                with TemporaryDirectory(prefix="dq-deploy-formats-") as folder:
                    made = measure(*cell, Path(folder))
                partial = _file(*cell).with_suffix(".partial")
                partial.write_text(made.model_dump_json(indent=1) + "\n")
                partial.replace(_file(*cell))
                advance(1, " ".join(cell))
    text = page(load())
    PAGE.write_text(text)
    out.text(text)


def _file(network: str, form: str) -> Path:
    return RESULTS / f"{slug(f'{network} {form}')}.json"


if __name__ == "__main__":
    main()
