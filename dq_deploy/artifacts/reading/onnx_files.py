"""ONNX graphs and the data files that they name.

A graph names files, and every parser opens what it names, each with other checks (measured: OpenVINO and ONNX Runtime follow hard links,
OpenVINO takes unknown keys, ``onnx.checker`` takes an offset of a petabyte). So the names are judged here first, without opening them.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArtifactError
from .paths import REMAKE, file_problem, in_hub_cache, name_problem, shown
from .plain import read_bytes, refuse_stand_in

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

# A protobuf message cannot be larger; what exceeds it is external data.
PROTOBUF_LIMIT = (1 << 31) - 1
EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
_EXPORT_AGAIN = "export it again: dq-deploy export CHECKPOINT -o BUNDLE --target TARGET"


def read_onnx(path: Path) -> onnx.ModelProto:
    """The graph of a file; what is kept in data files is not read. Raises ArtifactError when it is not ONNX."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    content = read_bytes(path, limit=PROTOBUF_LIMIT, hint=_EXPORT_AGAIN)
    refuse_stand_in(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, ValueError) as error:
        raise ArtifactError(f"{path} is not an ONNX graph: {error}", _EXPORT_AGAIN) from None
    if not model.graph.node:
        raise ArtifactError(f"{path} is not an ONNX graph: it has no nodes", _EXPORT_AGAIN)
    _check_versions(model, path)
    return model


def check_onnx(path: Path, *, listed: Collection[str] | None = None) -> onnx.ModelProto:
    """A graph that a parser may be given: it is one, and every data file that it names may be opened.

    ``listed`` are the files whose hashes have been compared: data must be in one of them. Raises ArtifactError naming all offenders.
    """
    model = read_onnx(path)
    check_external_data(model, path, listed=listed)
    return model


def _check_versions(model: onnx.ModelProto, path: Path) -> None:
    """OpenVINO takes any opset from the future for the newest that it knows."""
    import onnx

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    known = {"opset": (opset, onnx.defs.onnx_opset_version()), "IR version": (model.ir_version, onnx.IR_VERSION)}
    if opset is None:
        raise ArtifactError(f"{path} is not an ONNX graph: it names no opset", _EXPORT_AGAIN)
    if newer := [f"{what} {found} (up to {last} is known)" for what, (found, last) in known.items() if found is not None and found > last]:
        raise ArtifactError(
            f"{path} is newer than onnx {onnx.__version__}: {', '.join(newer)}", "upgrade onnx, or export to an older opset"
        )


def check_external_data(model: onnx.ModelProto, path: Path, *, listed: Collection[str] | None = None) -> None:
    """Refuse a graph that names data outside of its folder or of the ``listed`` files, or bytes that are not there (ArtifactError)."""
    found = ((tensor.name, _problem(tensor, path.parent, listed)) for tensor in _tensors(model.graph, *model.functions))
    problems = dict.fromkeys(f"{problem} (tensor {name})" for name, problem in found if problem)
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ArtifactError(f"{path} names data that must not be read: {'; '.join(list(problems)[:5])}{more}", REMAKE)


def read_ir(path: Path, *, listed: Collection[str] | None = None) -> ir.Model:
    """The graph in onnx-ir's terms, its data files mapped where it needs them. Raises ArtifactError as ``check_onnx`` does."""
    import onnx_ir as ir

    proto = check_onnx(path, listed=listed)
    base = _follow_links(proto, path.parent)
    try:
        model = ir.from_proto(proto)
    except (ValueError, TypeError, KeyError, ir.serde.SerdeError) as error:
        raise ArtifactError(f"{path} is not an ONNX graph: {error.__cause__ or error}", _EXPORT_AGAIN) from None
    ir.external_data.set_base_dir(model.graph, base)
    return model


def _follow_links(model: onnx.ModelProto, folder: Path) -> Path:
    """Name the files behind a hub cache's links in the graph, as onnx-ir follows none; the folder in which its data files are."""
    entries = [e for t in _tensors(model.graph, *model.functions) if _is_external(t) for e in t.external_data if e.key == "location"]
    linked = [entry for entry in entries if in_hub_cache(folder, folder / entry.value)]
    if not linked:
        return folder
    base: Path = (folder / linked[0].value).resolve().parent  # the blobs of the cache, all of them
    for entry in entries:
        entry.value = (folder / entry.value).resolve().name
    return base


def check_structure(path: Path) -> None:
    """Apply ``onnx.checker``, without its shape inference; raises its errors.

    It takes neither a link nor a hard link for a data file, and a hub's cache is made of links: it is then shown empty files of their
    names. Whether the real ones may be read is for ``check_external_data`` to say.
    """
    import onnx

    model = read_onnx(path)
    names = {e.value for t in _tensors(model.graph, *model.functions) if _is_external(t) for e in t.external_data if e.key == "location"}
    files = [path.parent / name for name in names if name_problem(name) is None]
    if not any(file.is_symlink() or (file.exists() and file.stat().st_nlink > 1) for file in files):
        onnx.checker.check_model(str(path))
        return
    with tempfile.TemporaryDirectory(prefix="dq-deploy-structure-") as folder:
        for file in (Path(folder) / file.relative_to(path.parent) for file in files):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        copy = Path(folder) / path.name
        while copy.exists():  # a data file of that name
            copy = copy.with_name(f"_{copy.name}")
        copy.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(copy))


@contextmanager
def without_links(folder: Path, names: Collection[str]) -> Iterator[Path]:
    """A folder in which files of ``folder`` are not links: itself, but for a hub's cache, which OpenVINO's parser refuses.

    There it is a temporary one beside the blobs, with hard links, or copies where the system makes none.
    """
    linked = [name for name in names if (folder / name).is_symlink()]
    if not linked:
        yield folder
        return
    near = (folder / linked[0]).resolve().parent
    with tempfile.TemporaryDirectory(prefix=".dq-deploy-", dir=near if os.access(near, os.W_OK) else None) as made:
        for name in names:
            target = Path(made) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.hardlink_to((folder / name).resolve())
            except OSError:
                shutil.copyfile(folder / name, target)
        yield Path(made)


def data_problem(
    folder: Path,
    location: str,
    *,
    dtype: int,
    shape: Sequence[int],
    offset: int | None = None,
    length: int | None = None,
    listed: Collection[str] | None = None,
) -> str | None:
    """Why a tensor's data must not be read, None for data that may be. ``dtype`` is one of TensorProto's numbers.

    A hard link is refused, as by ``onnx.checker``, outside of a hub's cache.
    """
    if problem := name_problem(location):
        return problem
    if listed is not None and location not in listed:
        return "is not among the files that the manifest lists"
    if problem := file_problem(folder, location):
        return problem
    file = folder / location
    if file.stat().st_nlink > 1 and not in_hub_cache(folder, file):
        return "is a hard link, which may be to any file: copy it"
    if any(size < 0 for size in shape):
        return f"holds a tensor of shape {list(shape)}"
    needed = _bytes_of(dtype, shape)
    if needed is None:
        return f"holds a tensor of the unknown type {dtype}"
    if length is not None and length != needed:
        return f"gives {length} bytes for a tensor that takes {needed}"
    begin, there = offset or 0, file.stat().st_size
    return None if 0 <= begin <= there - needed else f"has {there} bytes, and those from {begin} to {begin + needed} are needed"


def _problem(tensor: Any, folder: Path, listed: Collection[str] | None) -> str | None:
    if not _is_external(tensor):
        return None
    # Where a text is not UTF-8, protobuf passes bytes.
    entries = {_text(entry.key): _text(entry.value) for entry in tensor.external_data}
    location = entries.get("location", "")
    if len(entries) != len(tensor.external_data):
        return f"{shown(location)} has a key twice"
    if unknown := sorted(entries.keys() - EXTERNAL_KEYS):
        return f"{shown(location)} has the unknown key(s) {', '.join(unknown)}"
    numbers = {key: entries[key] for key in ("offset", "length") if key in entries}
    # isdecimal() knows other scripts' digits; no file has a size of twenty of them.
    if bad := [f"{key} {text[:30]!r}" for key, text in numbers.items() if not (text.isascii() and text.isdecimal() and len(text) < 20)]:
        return f"{shown(location)} has the {' and the '.join(bad)}"
    given = {key: int(text) for key, text in numbers.items()}
    problem = data_problem(folder, location, dtype=tensor.data_type, shape=tensor.dims, listed=listed, **given)
    return problem and f"{shown(location)} {problem}"


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="backslashreplace") + "\0"  # no name that could be one


def _bytes_of(dtype: int, shape: Sequence[int]) -> int | None:
    import onnx

    try:
        bits = _PACKED_BITS.get(dtype) or onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize * 8
    except (KeyError, TypeError, ValueError):
        return None
    return -(-math.prod(shape) * bits // 8)


# Two (or four) to a byte in a data file; numpy gives each a byte. By the numbers of TensorProto.DataType.
_PACKED_BITS = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}  # UINT4, INT4, FLOAT4E2M1, UINT2, INT2


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL)


def _tensors(*graphs: Any) -> Iterator[Any]:
    """Every tensor of graphs and functions: initializers and attributes of nodes, in their subgraphs too."""
    for graph in graphs:
        yield from getattr(graph, "initializer", ())
        yield from _dense(getattr(graph, "sparse_initializer", ()))
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            yield from _dense((attribute.sparse_tensor, *attribute.sparse_tensors))
            yield from _tensors(attribute.g, *attribute.graphs)


def _dense(sparse: Iterable[Any]) -> Iterator[Any]:
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
