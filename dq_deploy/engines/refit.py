"""A LoRA into whatever came from a checkpoint: the checkpoint is refitted, and a bundle or an engine is made from it as the old one was.

No engine is refitted in place: it is built again, from the same graph and scales with other integers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artifacts import Artifact, check_output, is_kind, open_artifact
from ..artifacts.details import CheckpointDetails, EngineDetails, GraphDetails
from ..artifacts.lineage import origin_of
from ..errors import UsageError
from ..exporters import export
from ..exporters.again import export_options
from ..progress import Progress, silent
from ..quantization.refit import refit as refit_checkpoint
from .build.engine import build_engine
from .descriptors.registry import builder_named
from .loading.engine_files import build_arguments


def refit(path: str | Path | Artifact, output: str | Path, *, checkpoint: str | Path | Artifact | None = None,
          lora: str | Path | None = None, lora_scale: float = 1.0, source: str | Path | None = None, rounding: str | None = None,
          ip_adapter_scale: float | None = None, force: bool = False, progress: Progress = silent) -> Artifact:  # fmt: skip
    """Write to ``output`` what ``path`` is, a checkpoint, a bundle or an engine, with other weights and without calibration.

    The weights are those of the checkpoint's source and the file ``lora``, added ``lora_scale`` times. A LoRA that the checkpoint has is
    replaced; ``lora`` None takes it off. ``source`` is another folder, hub id or built-in with other weights of the same network, a
    fine-tuned copy, in the place of the one that the manifest names. ``rounding`` is "gptq" or "nearest", by default the checkpoint's.
    Graph, tables and scales stay, so the graph is the same with other integers. ``ip_adapter_scale`` is how much the picture of its
    IP-Adapter counts, in the place of what it was quantized with; without a ``lora`` the one that is there stays.

    A bundle or an engine needs the ``checkpoint`` that it came from, or one that was refitted from that. It is exported, and built, with
    the options that its manifest has; the refitted checkpoint stays beside it as ``<output>.checkpoint``, and an engine's bundle as
    ``<output>.bundle``.

    Raises UsageError (a LoRA that changes nothing, or what has no codes of its own in a scale; a schedule; a checkpoint missing, or given
    for another one) and ArtifactError (a source that has changed, a checkpoint that does not hold its dilation), and as ``export`` and
    ``build_engine`` do.
    """
    weights: dict[str, Any] = {
        "lora": lora, "lora_scale": lora_scale, "source": source, "rounding": rounding, "ip_adapter_scale": ip_adapter_scale,
    }  # fmt: skip
    again: dict[str, Any] = {"force": force, "progress": progress}
    given = path if isinstance(path, Artifact) else open_artifact(path, ("checkpoint", "bundle", "engine", "schedule"))
    if given.manifest.kind == "checkpoint":
        if checkpoint is not None:
            raise UsageError(f"{given.path} is a checkpoint itself, and another is given", "leave --checkpoint out")
        return refit_checkpoint(given, output, **weights, **again)
    old = _runnable(given)
    parent = _checkpoint_of(old, checkpoint)
    output = Path(output)
    new_checkpoint, new_bundle = (output.with_name(f"{output.name}.{kind}") for kind in ("checkpoint", "bundle"))
    engine = is_kind(old, EngineDetails)
    if is_kind(old, EngineDetails):
        builder_named(old.details.backend).check()
    for made in (output, new_checkpoint, *([new_bundle] if engine else [])):
        check_output(made, force=force, source=old.path)
    refitted = refit_checkpoint(parent, new_checkpoint, **weights, **again)
    bundle = export(refitted, new_bundle if engine else output, **export_options(old.details), **again)
    return build_engine(bundle, output, **build_arguments(old.details), **again) if is_kind(old, EngineDetails) else bundle


def _runnable(given: Artifact[Any]) -> Artifact[GraphDetails]:
    if not is_kind(given, GraphDetails):
        members = ", ".join(entry.name for entry in given.details.members)
        raise UsageError(f"{given.path} is a schedule of {members}", "refit each of them, and combine these: dq-deploy combine")
    return given


def _checkpoint_of(old: Artifact[GraphDetails], checkpoint: str | Path | Artifact | None) -> Artifact[CheckpointDetails]:
    """The checkpoint that an artefact came from, or a relative of it by refits. Raises UsageError without one, and for another."""
    if checkpoint is None:
        kind = old.manifest.kind
        raise UsageError(
            f"{old.path} is {'an engine' if kind == 'engine' else f'a {kind}'}, which holds no float weights, no dilation and no samples "
            "to round by",
            "give the checkpoint that it came from: --checkpoint DIR",
        )
    found = open_artifact(checkpoint.path if isinstance(checkpoint, Artifact) else checkpoint, "checkpoint")
    own, theirs = found.as_parent.manifest_sha256, {origin_of(old), old.details.refit_of} - {None}
    if not theirs & {own, found.details.refit.of if found.details.refit else own}:
        raise UsageError(f"{old.path} was not made from {found.path}", "give the checkpoint that it came from, or a refit of that")
    return found
