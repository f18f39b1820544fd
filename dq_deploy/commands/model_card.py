"""``dq-deploy model-card``: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path

import click

from ..console import Output
from .options import PATH, common, force_option


@click.command("model-card", short_help="Write a model card.")
@click.argument("path", type=PATH)
@click.option("-o", "--output", "destination", type=PATH, help="File for the card, README.md usually.  [default: stdout]")
@click.option("--report", "measured", type=PATH, help="What dq-deploy report --format json printed, for accuracy and latency.")
@click.option("--repo-id", metavar="OWNER/NAME", help="The repository that the card is for.")
@click.option("--license", "license_id", metavar="ID", help="Licence of the weights, as the hub abbreviates it.")
@force_option
@common
def model_card(
    path: Path, destination: Path | None, measured: Path | None, repo_id: str | None, license_id: str | None, force: bool, output: Output
) -> None:
    """Write the model card of PATH (a checkpoint, bundle, engine or schedule): metadata, bits, accuracy, latency, how to run and make it.

    Accuracy, latency and pictures come from a report about it; the pictures go into samples.png beside the card.
    """
    from ..artifacts import open_artifact
    from ..artifacts.output_file import check_output_file, write_whole
    from ..errors import UsageError
    from ..hub.card import PICTURE_NAME, read_report, sample_grid
    from ..hub.card import model_card as make_card

    if force and destination is None:
        raise UsageError("--force would be ignored: without -o nothing is written")
    if destination is not None:
        check_output_file(destination, ".md", force=force)
    artifact = open_artifact(path, ("checkpoint", "bundle", "engine", "schedule"))
    data = None if measured is None else read_report(measured, artifact)
    card = make_card(artifact, data, repo_id=repo_id, license_id=license_id)
    if destination is None:
        output.text(card.rstrip("\n"))
    else:
        if data is not None and data.pictures is not None:
            picture = destination.with_name(PICTURE_NAME)
            check_output_file(picture, ".png", force=force)
            write_whole(picture, sample_grid(data.pictures))
        write_whole(destination, card.encode())
        output.text(f"card: {destination}")
    output.data({"card": card, "path": destination})
