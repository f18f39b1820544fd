"""An artefact to a repository of the hub, in one commit: a repository holds a whole artefact, or the one before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..artifacts import MANIFEST_NAME, open_artifact
from ..sources.hub_access import from_hub, push_error
from .card import CARD_NAME, PICTURE_NAME, model_card, read_report, sample_grid
from .repo_id import check_repo_id

_HUBS_OWN = (".gitattributes",)


@dataclass(frozen=True)
class Pushed:
    """What was uploaded (bytes by file), what of an earlier artefact was removed, and the commit's address; None after a dry run."""

    repo_id: str
    files: dict[str, int]
    removed: list[str]
    url: str | None


def push(path: str | Path, repo_id: str, *, report: str | Path | None = None, license_id: str | None = None, private: bool = False,
         message: str | None = None, dry_run: bool = False) -> Pushed:  # fmt: skip
    """Upload a checkpoint, bundle, engine or schedule with a model card to the hub's repository ``repo_id``, created if it does not exist.

    Only what the manifest lists is uploaded, verified, with the card and (from the JSON of a ``report``) the pictures; whatever else the
    repository held is removed in the same commit. ``dry_run`` contacts nobody.

    Raises UsageError (no such path, a bad id), ArtifactError (a damaged artefact, a report about another) and EnvironmentProblem (the hub
    refuses, or cannot be reached).
    """
    check_repo_id(repo_id)
    artifact = open_artifact(path, ("checkpoint", "bundle", "engine", "schedule"))
    data = None if report is None else read_report(Path(report), artifact)
    contents: dict[str, Path | bytes] = {name: artifact.file(name) for name in artifact.manifest.files}
    contents[MANIFEST_NAME] = artifact.path / MANIFEST_NAME
    contents[CARD_NAME] = model_card(artifact, data, repo_id=repo_id, license_id=license_id).encode()
    if data is not None and data.pictures is not None:
        contents[PICTURE_NAME] = sample_grid(data.pictures)
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in contents.items()}
    if dry_run:
        return Pushed(repo_id, sizes, [], None)
    with _explained(repo_id):
        api = HfApi(library_name="dq-deploy")
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        removed = sorted(set(api.list_repo_files(repo_id)) - contents.keys() - set(_HUBS_OWN))
        operations: list[Any] = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content)) for name, content in contents.items()
        ]
        operations += [CommitOperationDelete(name) for name in removed]
        title = message or f"{artifact.manifest.model}, {artifact.manifest.kind} by dq-deploy"
        commit = api.create_commit(repo_id, operations, commit_message=title)
    return Pushed(repo_id, sizes, removed, str(commit.commit_url))


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not from_hub(error):
            raise
        raise push_error(error, repo_id) from None
