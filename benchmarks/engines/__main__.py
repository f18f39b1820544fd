"""Measure what is missing and write the page: one file a cell."""

from __future__ import annotations

import click

from dq_deploy.console import Output

from .report import PAGE, RESULTS, load, page
from .study import cell_name, cells, measure


@click.command()
@click.option("--page-only", is_flag=True, help="Write the page again from what is recorded; builds nothing.")
@click.option("--again", is_flag=True, help="Measure everything anew; without it, what is recorded is kept.")
def main(page_only: bool, again: bool) -> None:
    """Build the built-in models with TensorRT-RTX, per-timestep, static and in float; writes results/ and RESULTS.md."""
    out = Output()
    RESULTS.mkdir(exist_ok=True)
    pending = [cell for cell in cells() if again or not (RESULTS / f"{cell_name(*cell)}.json").is_file()]
    if pending and not page_only:
        with out.progress("engines", len(pending)) as advance:
            for cell in pending:
                file = RESULTS / f"{cell_name(*cell)}.json"
                partial = file.with_suffix(".partial")
                partial.write_text(measure(*cell).model_dump_json(indent=1) + "\n")
                partial.replace(file)
                advance(1, file.stem)
    text = page(load())
    PAGE.write_text(text)
    out.text(text)


if __name__ == "__main__":
    main()
