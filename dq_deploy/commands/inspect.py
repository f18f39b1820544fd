"""``dq-deploy inspect``: the command, and what it prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Output, megabytes
from .options import PATH, common, force_option

if TYPE_CHECKING:
    from ..artifacts import Artifact
    from ..artifacts.details import CheckpointDetails, EngineDetails, GraphDetails
    from ..artifacts.scale_tables import ScaleTable

_SHOWN_TIMESTEPS = 6

_CLIPPING_RATIO = "clipping ratio"


@click.command(short_help="What an artefact is, and its scale tables.")
@click.argument("path", type=PATH)
@click.option(
    "--layer", metavar="PATTERN", help="Show the scale tables of the quantizers and layers that match (fnmatch), such as '*conv1'."
)
@click.option("--plot", type=PATH, metavar="FILE", help="Draw the scale tables (or those of --layer) as PNG or SVG.")
@force_option
@common
def inspect(path: Path, layer: str | None, plot: Path | None, force: bool, output: Output) -> None:
    """Show what PATH (a checkpoint, bundle, engine or schedule) is, and verify its files. Needs no runtime.

    --layer '*' shows the scale tables of all layers; --format json has a summary of each.
    """
    from ..artifacts import open_artifact
    from ..artifacts.scale_tables import read_tables, select_tables

    if plot is not None:
        from ..report.table_file import check_picture, save_tables

        check_picture(plot, force=force)
    artifact = open_artifact(path, ("checkpoint", "bundle", "engine", "schedule"))
    with_tables = artifact.manifest.kind not in ("engine", "schedule") or layer is not None or plot is not None
    found = read_tables(artifact) if with_tables else {}
    if layer is not None:
        found = select_tables(artifact, found, layer)
    if plot is not None:
        save_tables(found, plot)
    show_artifact(artifact, found, output, in_full=layer is not None)
    if plot is not None:
        output.note(f"drawn: {plot}")


def show_artifact(artifact: Artifact, found: Mapping[str, ScaleTable], output: Output, *, in_full: bool) -> None:
    """What the manifest says, that the files are those it lists, and of the scale tables how many, or ``in_full`` every row."""
    from ..artifacts.layer_bits import bits_in_words

    manifest = artifact.manifest
    rows: list[tuple[str, object]] = [("kind", manifest.kind), ("model", manifest.model), ("schema version", manifest.schema_version)]
    rows += [("calibrated timesteps", _span(manifest.timesteps))]
    if ran := (manifest.scheduler or {}).get("calibrated_with"):
        rows += [("calibrated with", f"{ran['class']}: {ran['why']}")]
    rows += _of_its_kind(artifact)
    if manifest.quantization:
        rows += [("bits, by work", bits_in_words(artifact))]
    if manifest.quantization and manifest.kind != "schedule":
        rows += [(f"preset: {what} bits", manifest.quantization[f"{what}_bits"]) for what in ("weight", "activation")]
        rows += [("preset: products", products.upper())] if (products := manifest.quantization.get("products", "int8")) != "int8" else []
    rows += _counted(found) if not in_full else []
    rows += [(f"file {name}", f"{megabytes(entry.size)}, sha256 verified") for name, entry in manifest.files.items()]
    rows += [("made with", ", ".join(f"{name} {version}" for name, version in manifest.tools.items()))]
    output.table(str(artifact.path), ("", ""), rows)
    _show_widths(artifact.details, output)
    if in_full:
        for name, table in found.items():
            lines = zip(table.timesteps, table.scales, table.zero_points, strict=True)
            full = [(f"{timestep:g}", f"{scale:.6g}", str(zero_point)) for timestep, scale, zero_point in lines]
            output.table(name, ("timestep", _CLIPPING_RATIO if table.per_token else "scale", "zero-point"), full)
    output.data({**manifest.model_dump(), "scale_tables": {name: _table_json(table, in_full=in_full) for name, table in found.items()}})


def _counted(found: Mapping[str, ScaleTable]) -> list[tuple[str, object]]:
    """How many scale tables there are, and how many quantizers compute their scales and have clipping ratios in a table."""
    computed = sum(table.per_token for table in found.values())
    counts = {"scale tables": len(found) - computed, "tables of clipping ratios": computed}
    return [(name, f"{count}, see --layer '*'") for name, count in counts.items() if count]


def _of_its_kind(artifact: Artifact) -> list[tuple[str, object]]:
    """What only an artefact of this kind has to say."""
    from ..artifacts import is_kind
    from ..artifacts.details import BundleDetails, CheckpointDetails, EngineDetails, GraphDetails, RepositoryDetails, ScheduleDetails
    from ..artifacts.final_error import most_clipped
    from ..artifacts.layer_bits import bits_in_words
    from ..artifacts.turns import turns

    details, rows = artifact.details, size_rows(artifact.details)
    if isinstance(details, GraphDetails):
        rows += [("target", details.target), ("dtype", details.dtype)]
        rows += width_rows(details)
    if isinstance(details, EngineDetails | RepositoryDetails):
        rows += [("backend", details.backend)]
    if isinstance(details, EngineDetails):
        rows += _built_for(details)
        rows += [(f"lint overridden: {rule}", f"{count} errors") for rule, count in details.lint_allowed.items()]
    if isinstance(details, BundleDetails) and details.float_convolutions:
        rows += [("convolutions left in float", len(details.float_convolutions))]
    if is_kind(artifact, CheckpointDetails):
        details = artifact.details
        rows += [("multiply-accumulates in float", f"{details.float_mac_share:.2%}")]
        rows += [(f"weights rounded {details.rounded_as}", details.rounding_summary)]
        rows += choice_rows(artifact)
        if details.kept_state:
            rows += [("kept of distillation", details.kept_state.summary)]
        if details.final_error:
            rows += [("SNR of the final sample", details.final_error.summary)]
        rows += [(one.name, one.summary) for one in details.widths]
        if details.clipped is not None:
            rows += [("clipped on held-out samples", most_clipped(details.clipped, artifact.manifest.timesteps))]
    if is_kind(artifact, ScheduleDetails):
        for turn, entry in zip(turns(artifact), artifact.details.members, strict=True):
            what = f"{bits_in_words(turn.member) or 'float'}, {turn.member.manifest.kind} {entry.name}"
            rows += [(f"member {entry.folder}", f"{what}: timesteps {turn.span} ({len(turn.timesteps)} of {_count(artifact)})")]
    return rows


def _built_for(details: EngineDetails) -> list[tuple[str, object]]:
    """What an engine runs on, with which library, and what it takes."""
    from ..engines.build.profiles import in_words

    rows: list[tuple[str, object]] = [("compute capability", ", ".join(details.capabilities))] if details.capabilities else []
    least, usual, largest = details.batch
    shapes = ((entry.name, " × ".join(map(str, entry.shape))) for entry in details.inputs)
    return [
        *rows,
        ("built with", f"{details.backend} {details.version}"),
        ("batch", f"{least} to {largest}, usually {usual}"),
        *((f"profile {number}", in_words(profile)) for number, profile in enumerate(details.profiles, 1)),
        *((f"input {name}", shape) for name, shape in shapes),
    ]


def choice_rows(checkpoint: Artifact[CheckpointDetails]) -> list[tuple[str, object]]:
    """How many layers have what not all have: scales for each token, wider formats, rotations, branches."""
    manifest, details = checkpoint.manifest, checkpoint.details
    rows: list[tuple[str, object]] = []
    if manifest.activations in ("auto", "per-token"):
        rows.append(("scales for each token", details.per_token))
    if details.formats:
        rows.append(("number formats", details.formats))
    if details.rotation:
        rows.append(("rotated", details.rotated))
    if details.branched:
        rows.append(("low-rank branches", f"of rank {manifest.low_rank}, beside {len(details.branched)} linear layers"))
    return rows


def size_rows(details: Any) -> list[tuple[str, object]]:
    """The calibrated sizes, with the worst SNR at each where it is known, and what each free dimension may be; a repository has none."""
    rows: list[tuple[str, object]] = []
    built = getattr(details, "sizes", {})  # an engine's
    for size in getattr(details, "calibrated_sizes", ()):
        worst = f"worst step {min(size.snr_db):.1f} dB" if size.snr_db else "yes"
        rows.append((f"{'calibrated at' if size.calibrated else 'not calibrated, but tried'} {size}", worst))
    for name, free in getattr(details, "free", {}).items():
        least, usual, largest = built.get(name, free.range)
        steps = f", in steps of {free.multiple}" if free.multiple > 1 else ""
        unit = f" ({unit})" if (unit := details.unit(name)) else ""
        follows = f" ({free.ratio[0]}/{free.ratio[1]} of the {free.of})" if free.of is not None else ""
        of = ", ".join(input_ for input_, _ in free.axes)
        rows.append((f"{name} of {of}" if free.of is None else name, f"{least} to {largest}, usually {usual}{steps}{unit}{follows}"))
    return rows


def _count(artifact: Artifact[Any]) -> int:
    return len(artifact.manifest.timesteps)


def width_rows(details: GraphDetails) -> list[tuple[str, object]]:
    """To what the weights of a bundle or an engine were sliced, and what chose that."""
    width, choice = details.width, details.width_choice
    if width is None:
        return []
    if isinstance(width, int):
        return [("width of the weights", f"{width} bits")]
    counts = sorted(Counter(width.values()).items(), reverse=True)
    parts = ", ".join(f"{count} have {bits} bits" for bits, count in counts)
    rows: list[tuple[str, object]] = [("width of the weights", f"of {len(width)} layers that have widths {parts}")]
    return rows + ([("chosen by --weight-budget", choice.summary)] if choice else [])


def _show_widths(details: Any, output: Output) -> None:
    """The width of each layer where there was a choice, the layers that would lose most by the fewest bits first."""
    width, choice = getattr(details, "width", None), getattr(details, "width_choice", None)
    if choice is None or not isinstance(width, Mapping):
        return
    shares = {name: choice.error_share.get(name, 0.0) for name in width}
    rows = [(name, str(width[name]), f"{shares[name]:.1%}") for name in sorted(width, key=lambda name: -shares[name])]
    output.table("widths by layer", ("layer", "bits", "share of the error if all had the fewest"), rows)


def _span(timesteps: list[float]) -> str:
    """All of a few, else how many from where to where."""
    if len(timesteps) <= _SHOWN_TIMESTEPS:
        return ", ".join(f"{t:g}" for t in timesteps)
    return f"{len(timesteps)}, from {max(timesteps):g} to {min(timesteps):g}"


def _table_json(table: ScaleTable, *, in_full: bool) -> dict[str, Any]:
    return {**table.summary(), **(table.model_dump() if in_full else {})}
