"""``dq-deploy push``: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Output
from .options import PATH, common

if TYPE_CHECKING:
    from ..hub.push import Pushed


@click.command(short_help="Upload an artefact to the Hugging Face hub.")
@click.argument("path", type=PATH)
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--report", type=PATH, help="What dq-deploy report --format json printed, for the card.")
@click.option("--license", "license_id", metavar="ID", help="Licence of the weights, as the hub abbreviates it.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--message", help="Title of the commit.")
@click.option("--dry-run", is_flag=True, help="Only say what would be uploaded; contacts nobody.")
@common
def push(path: Path, repo_id: str, output: Output, **options: Any) -> None:
    """Upload PATH (a checkpoint, bundle, engine or schedule) with its model card to the repository OWNER/NAME of the Hugging Face hub.

    It is one commit.
    Only what the manifest lists is uploaded; what else the repository held is removed. Log in first: hf auth login.
    """
    from ..hub.push import push as run_push

    show_push(run_push(path, repo_id, **options), output)


def show_push(result: Pushed, output: Output) -> None:
    """Every file with its size, and where they are now."""
    rows = [(name, f"{size / 1e6:.2f} MB") for name, size in result.files.items()]
    output.table(result.repo_id, ("file", "size"), [*rows, *((name, "removed") for name in result.removed)])
    output.text(f"pushed: {result.url}" if result.url else "nothing was uploaded: --dry-run")
    output.data(result)
