"""``dq_deploy.load``: a bundle or an engine on this machine, or a bundle on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artifacts import Artifact, open_artifact, read_manifest
from ..engines.dropin import DropInModel
from ..engines.dropin import load as load_local
from ..engines.loading.choice import Runtime
from ..errors import EnvironmentProblem, UsageError
from ..sources.hub_access import download_error, from_hub
from .repo_id import REPO_ID


def load(path: str | Path | Artifact, *, runtime: Runtime = "auto", revision: str | None = None, cache: float | None = None,
         **options: Any) -> DropInModel:  # fmt: skip
    """A bundle, an engine or a schedule as the drop-in for a pipeline's ``unet`` or ``transformer``.

    ``path`` is a folder, an opened artefact, or the id of a hub repository (owner/name, at ``revision``), which is downloaded into the
    hub's cache; from there bundles and schedules of them are loaded, and no engine, which is code. ``runtime`` "auto" is what an engine
    was built for, and for a bundle the faster of those that are installed and exact here (``choice.best_runtime``). ``options`` go to its
    runner: ``providers``, ``optimized``, ``threads``; for OpenVINO ``precision``, ``threads``, ``integer``; for all ``nonfinite``: "refuse"
    samples with NaN or infinity, or "propagate" them. ``watch=True`` counts those, and codes at an end of their range, by timestep
    (``model.watched()``). ``cache=0.05``, or another threshold, lets a bundle skip all but its first block at steps where what that adds
    has changed by less (docs/caching.md), and ``model.cached()`` says how often it did.

    Raises UsageError (no such path or repository, unknown runtime), ArtifactError (none of the three, a changed file, another runtime than
    the engine's) and EnvironmentProblem (the runtime is not installed, or does not match the engine).
    """
    if cache is not None:
        options["cache"] = cache
    on_hub = isinstance(path, str) and REPO_ID.fullmatch(path) and not Path(path).exists()
    if not on_hub:
        if revision is not None:
            raise UsageError(f"a revision belongs to a hub repository, and {path} is not one", "leave revision out")
        return load_local(path, runtime=runtime, **options)
    return load_local(download(str(path), revision), runtime=runtime, **options)


def download(repo_id: str, revision: str | None = None) -> Artifact:
    """The bundle or schedule of bundles in a hub repository, every file verified; what the manifest lists is fetched, and nothing else.

    Raises UsageError (no such repository, an engine, a schedule with one) and ArtifactError (no artefact in there, a changed file).
    """
    root = _fetch(repo_id, revision, ["manifest.json"])
    manifest = read_manifest(root)
    if manifest.kind == "engine":
        raise _code(repo_id, "is an engine")
    # The folder's name is the commit: what is listed and what is fetched belong together, whatever is pushed meanwhile.
    members = [name for name in manifest.files if name.endswith("/manifest.json")]
    if members:
        root = _fetch(repo_id, root.name, members)
        if any(read_manifest((root / name).parent).kind == "engine" for name in members):
            raise _code(repo_id, "has an engine in it")
    return open_artifact(_fetch(repo_id, root.name, ["manifest.json", *manifest.files]), ("bundle", "schedule"))


def _code(repo_id: str, why: str) -> UsageError:
    return UsageError(
        f"{repo_id} {why}, which is code, and is not loaded from the hub",
        f"if you trust {repo_id.partition('/')[0]}: hf download {repo_id} --local-dir engine, and load that folder",
    )


def _fetch(repo_id: str, revision: str | None, files: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise EnvironmentProblem(f"the hub repository '{repo_id}' needs huggingface_hub: {error}", "pip install huggingface_hub") from None
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=files, library_name="dq-deploy"))
    except Exception as error:
        if not from_hub(error):
            raise
        raise download_error(error, repo_id, "repository") from None
