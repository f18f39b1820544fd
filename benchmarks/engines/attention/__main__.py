"""Measure what is missing and write the page: one file a case and a network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from pydantic import BaseModel

from dq_deploy.console import Output

from .conditions import CASES, probe
from .networks import NETWORKS, Built, measure
from .report import PAGE, RESULTS, load_conditions, load_networks, page, slug


@click.command()
@click.option("--page-only", is_flag=True, help="Write the page again from what is recorded; builds nothing.")
@click.option("--only", help="Measure the networks and cases whose name has this in it.")
@click.option("--work", type=click.Path(path_type=Path), help="Keep checkpoints and engines here, and go on from those that are there.")
def main(page_only: bool, only: str | None, work: Path | None) -> None:
    """Build small attentions and whole networks with TensorRT-RTX; writes results/ and ATTENTION.md."""
    out = Output()
    pending: list[tuple[str, Callable[[], BaseModel]]] = [
        *((name, lambda case=case: probe(case)) for name, case in CASES.items()),
        *((name, lambda name=name: _network(name, work)) for name in NETWORKS),
    ]
    pending = [(name, run) for name, run in pending if (only or "") in name and not _file(name).is_file()]
    if pending and not page_only:
        with out.progress("attention", len(pending)) as advance:
            for name, run in pending:
                partial = _file(name).with_suffix(".partial")
                partial.write_text(run().model_dump_json(indent=1) + "\n")
                partial.replace(_file(name))
                advance(1, name)
    text = page(load_conditions(), load_networks())
    PAGE.write_text(text)
    out.text(text)


def _network(name: str, work: Path | None) -> Built:
    with nullcontext(work) if work else TemporaryDirectory(prefix="dq-deploy-attention-") as folder:
        return measure(name, Path(folder) / slug(name))


def _file(name: str) -> Path:
    return RESULTS / f"{slug(name)}.json"


if __name__ == "__main__":
    main()
