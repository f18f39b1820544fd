"""Weights under whatever names they were saved: variants, shards, a single file. diffusers then finds them under its plain names."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..artifacts.reading import check_safetensors, read_json, tensor_shapes
from ..artifacts.writing import write_text
from ..errors import ArtifactError
from .pickles import as_safetensors
from .pipeline_index import WEIGHTS_SUFFIX

# diffusers puts the variant before a shard's number, and once put it behind.
_NAME = re.compile(
    r"(?P<stem>.+?)(\.(?P<variant>\w+))?(-(?P<number>\d{5})-of-(?P<total>\d{5}))?(\.(?P<late>\w+))?" + re.escape(WEIGHTS_SUFFIX)
)
_STEMS = ("diffusion_pytorch_model", "model")
_ADAPTERS = ("pytorch_lora_weights", "adapter_model")
# Of several copies the one that is nearest to full precision; what was averaged over the training is what the pipeline draws with.
_VARIANTS = ("", "fp32", "bf16", "fp16")
_LAST = "non_ema"
_INDEX = f"{WEIGHTS_SUFFIX}.index.json"


@contextmanager
def readable(root: Path, parts: Sequence[str]) -> Iterator[Path]:
    """``root``, or a temporary folder of links to it in which the weights of ``parts`` have the names that diffusers looks for.

    Raises ArtifactError: weights that another tool has quantized, that are not safetensors, or of which a shard is missing.
    """
    for part in parts:
        check_precision(root / part)
    with as_safetensors(root, parts) as unpickled:
        found = {part: files for part in parts if (files := weight_files(unpickled / part))}
        for path in (path for files in found.values() for path in files):
            check_safetensors(path)
        renamed = {part: files for part, files in found.items() if not _is_plain(files, _stem(unpickled / part))}
        if not renamed:
            yield unpickled
            return
        with tempfile.TemporaryDirectory(prefix="dq-deploy-weights-") as temporary:
            folder = Path(temporary)
            _link(unpickled, folder, leave_out=set(renamed))
            for part, files in renamed.items():
                _rename(unpickled / part, files, folder / part)
            yield folder


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that hold a part's weights, one copy of them; none where there are none. Raises ArtifactError for a missing shard."""
    copies: dict[tuple[str, str, int], dict[int, Path]] = {}
    for path in sorted(folder.glob(f"*{WEIGHTS_SUFFIX}")):
        match = _NAME.fullmatch(path.name)
        if match and match["stem"] not in _ADAPTERS:
            key = (match["stem"], match["variant"] or match["late"] or "", int(match["total"] or 1))
            copies.setdefault(key, {})[int(match["number"] or 1)] = path
    if not copies:
        return []
    chosen = min(copies, key=_rank)
    (stem, variant, total), shards = chosen, copies[chosen]
    missing = [number for number in range(1, total + 1) if number not in shards]
    if missing:
        name = f"{stem}{f'.{variant}' if variant else ''}-{missing[0]:05}-of-{total:05}{WEIGHTS_SUFFIX}"
        raise ArtifactError(
            f"{folder} has {total - len(missing)} of the {total} shards of its weights: {name} is missing"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
            "an interrupted download continues where it stopped: hf download OWNER/NAME",
        )
    return [shards[number] for number in sorted(shards)]


def check_precision(folder: Path) -> None:
    """Raise ArtifactError when the part's configuration says that another tool has quantized its weights."""
    path = folder / "config.json"
    config = read_json(path, "valid JSON") if path.is_file() else None
    quantized = config.get("quantization_config") if isinstance(config, dict) else None
    if not quantized:
        return
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    raise ArtifactError(
        f"the weights in {folder} are quantized already{f' by {method}' if method else ''}: {path.name} has a quantization_config",
        "give the pipeline in its original precision; quantizing it is what this is for",
    )


def _rank(key: tuple[str, str, int]) -> tuple[object, ...]:
    stem, variant, total = key
    of_precision = _VARIANTS.index(variant) if variant in _VARIANTS else len(_VARIANTS) + (variant == _LAST)
    return _STEMS.index(stem) if stem in _STEMS else len(_STEMS), of_precision, total > 1, stem, variant, total


def _stem(folder: Path) -> str:
    """How the library that a part belongs to calls its weights."""
    config = folder / "config.json"
    described = read_json(config, "valid JSON") if config.is_file() else {}
    return _STEMS[0] if isinstance(described, dict) and "_class_name" in described else _STEMS[1]


def _names(stem: str, count: int) -> list[str]:
    numbers = [f"-{i:05}-of-{count:05}" if count > 1 else "" for i in range(1, count + 1)]
    return [f"{stem}{number}{WEIGHTS_SUFFIX}" for number in numbers]


def _is_plain(files: Sequence[Path], stem: str) -> bool:
    """Whether diffusers and transformers find these files by themselves."""
    indexed = len(files) == 1 or files[0].with_name(f"{stem}{_INDEX}").is_file()
    return indexed and [path.name for path in files] == _names(stem, len(files))


def _link(source: Path, target: Path, *, leave_out: set[str]) -> None:
    for entry in source.iterdir():
        if entry.name not in leave_out:
            (target / entry.name).symlink_to(entry.resolve())


def _rename(source: Path, files: Sequence[Path], target: Path) -> None:
    """A folder with a part's configuration and links to ``files`` under their plain names; shards have an index of their tensors."""
    target.mkdir()
    for entry in source.glob("*.json"):
        if ".index." not in entry.name:  # of shards
            (target / entry.name).symlink_to(entry.resolve())
    stem = _stem(source)
    names = _names(stem, len(files))
    for path, name in zip(files, names, strict=True):
        (target / name).symlink_to(path.resolve())
    if len(files) > 1:
        place = {tensor: name for path, name in zip(files, names, strict=True) for tensor in tensor_shapes(path)}
        total = sum(path.stat().st_size for path in files)
        write_text(target / f"{stem}{_INDEX}", json.dumps({"metadata": {"total_size": total}, "weight_map": place}))
