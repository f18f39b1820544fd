"""Pickled weights: refused, unless requested. Then they are read as plain tensors, and everything behind sees safetensors."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ..artifacts.reading import read_pickled_tensors
from ..artifacts.writing import write_tensors
from ..errors import ArtifactError
from .pipeline_index import WEIGHTS_SUFFIX

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLED_WEIGHTS = "*pytorch_model*.bin"
# As diffusers and transformers name them; of several copies the one in full precision is read.
_NAME = re.compile(r"(?P<stem>diffusion_pytorch_model|pytorch_model)(?P<half>\.fp16)?(-\d{5}-of-(?P<shards>\d{5}))?\.bin")
_SAFE_NAMES = {"diffusion_pytorch_model": "diffusion_pytorch_model.safetensors", "pytorch_model": "model.safetensors"}
Warn = Callable[[str], None]
_WARN: ContextVar[Warn | None] = ContextVar("pickles are allowed", default=None)


@contextmanager
def allow_pickles(warn: Warn = warnings.warn) -> Iterator[None]:
    """While the block runs, a source that has no safetensors is read from its ``.bin`` files, with a warning for each.

    Only tensors are made of them: ``torch.load(weights_only=True)``, which calls nothing that a file names. A block and no argument, for
    a checkpoint's source is also read again by later stages, and each program must say so where it means it. Other threads refuse.
    """
    token = _WARN.set(warn)
    try:
        yield
    finally:
        _WARN.reset(token)


def pickles_allowed() -> bool:
    """Whether this is such a block."""
    return _WARN.get() is not None


@contextmanager
def as_safetensors(root: Path, parts: Sequence[str]) -> Iterator[Path]:
    """``root``; where pickles are allowed and a part has no other weights, a temporary folder of links to it that has them as safetensors.

    Raises ArtifactError when a pickle is not a state dict, or a shard is missing.
    """
    warn = _WARN.get()
    pickled = {part: files for part in parts if (files := pickled_files(root / part))} if warn else {}
    if not warn or not pickled:
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="dq-deploy-pickles-") as temporary:
        folder = Path(temporary)
        for entry in root.iterdir():
            if entry.name not in pickled:
                (folder / entry.name).symlink_to(entry.resolve())
        for part, files in pickled.items():
            warn(f"reading pickled weights as plain tensors: {', '.join(str(file) for file in files)}")
            _convert(root / part, files, folder / part)
        yield folder


def pickled_files(folder: Path) -> list[Path]:
    """The pickles that hold a part's weights; none where it has safetensors."""
    if not folder.is_dir() or any(folder.glob(f"*{WEIGHTS_SUFFIX}")):
        return []
    found = {path: match for path in sorted(folder.iterdir()) if (match := _NAME.fullmatch(path.name))}
    full = [path for path, match in found.items() if not match["half"]] or list(found)
    whole = [path for path in full if not found[path]["shards"]]  # beside shards it would be a second copy
    if not whole and full and len(full) != int(found[full[0]]["shards"]):
        raise ArtifactError(f"{folder} has {len(full)} of the {int(found[full[0]]['shards'])} shards of its pickled weights")
    return whole[:1] or full


def _convert(source: Path, files: Sequence[Path], target: Path) -> None:
    target.mkdir()
    for entry in source.glob("*.json"):
        if not entry.name.endswith(".index.json"):  # of shards, which are one file now
            (target / entry.name).symlink_to(entry.resolve())
    # Copies: tensors that share memory cannot be written.
    tensors = {name: tensor.contiguous().clone() for file in files for name, tensor in read_pickled_tensors(file).items()}
    stem = _NAME.fullmatch(files[0].name)
    assert stem is not None
    write_tensors(target / _SAFE_NAMES[stem["stem"]], tensors, {"format": "pt"})
