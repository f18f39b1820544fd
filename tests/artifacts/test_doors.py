"""Files are opened and written in two places. What has no name that lint can ban is looked for in the syntax trees of the package.

A new line in ``EXCEPTIONS`` takes a reason: the file is our own of the same run, is not an artefact, or is read by a library that cannot be
handed bytes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dq_deploy

PACKAGE = Path(dq_deploy.__file__).parent
DOORS = ("artifacts/reading/", "artifacts/writing.py", "artifacts/folder.py")
READ = "read it with dq_deploy.artifacts.reading (read_bytes, read_json, read_record, check_onnx, read_arrays)"
WRITE = "write it with dq_deploy.artifacts.writing (write_bytes, write_tensors, …), or into the folder of create_artifact"
READERS = ("open", "read_text", "read_bytes")
WRITERS = (
    "write_text", "write_bytes", "rename", "mkstemp", "NamedTemporaryFile", "hardlink_to", "symlink_to", "copyfile", "copy2", "copytree",
    "touch", "rmtree", "savefig", "save_model", "save_file", "tofile", "savez",
)  # fmt: skip
CALLS = dict.fromkeys(READERS, READ) | dict.fromkeys(WRITERS, WRITE)
OURS = ("read_bytes", "write_bytes", "write_text")  # as methods of a Path they are forbidden; as functions they are the doors' own
EXCEPTIONS: dict[str, dict[str, str]] = {
    "artifacts/manifest.py": {"open": "hashing in chunks reads nothing into the program"},
    "console.py": {"open": "the process's own streams"},
    "engines/build/process.py": {
        "open": "the builder's log in the scratch folder of this run",
        "read_text": "the same log, and /proc",
        "read_bytes": "the result that our child has just written into the scratch folder",
    },
    "engines/build/engine.py": {"rename": "inside of the folder of create_artifact"},
    "engines/schedules/combine.py": {"copyfile": "verified files, into the folder of create_artifact"},
    "engines/pipeline_folder/folder.py": {"copyfile": "what another tool exported, into the folder of create_artifact"},
    "engines/pipeline_folder/onnx_graph.py": {"copyfile": "verified files, into the folder of create_artifact"},
    "engines/pipeline_folder/openvino_graph.py": {"save_model": "OpenVINO writes its IR itself, into the folder of create_artifact"},
    "engines/devices/machine.py": {"read_text": "/proc/cpuinfo"},
    "engines/openvino/child.py": {
        "read_bytes": "the request that our parent has just written",
        "open": "room for the IR, into the folder of create_artifact",
        "save_model": "OpenVINO writes its IR itself, into the folder of create_artifact",
    },
    "engines/tensorrt/child.py": {
        "read_bytes": "the request that our parent has just written",
        "open": "the plan, into the folder of create_artifact",
        "save_file": "the plan, into the folder of create_artifact",
    },
    "engines/build/prepared_graph.py": {"symlink_to": "a folder of links to a bundle's data, of this run"},
    "engines/triton/__init__.py": {"copyfile": "verified files, into the folder of create_artifact"},
    "hub/card.py": {"open": "a picture in memory"},
    "quantization/calibration/pipeline_source.py": {"read_text": "the user's prompts, as text"},
    "quantization/distillation/cache.py": {"open": "scratch of this run"},
    "quantization/distillation/distill.py": {"rmtree": "scratch of this run"},
    "quantization/rounding/layerwise.py": {"rmtree": "scratch of this run"},
    "sampling/videos.py": {"open": "a video in memory"},
    "sources/pictures.py": {"open": "the user's pictures, which PIL reads and whose size it limits"},
    "sources/pickles.py": {"symlink_to": "a folder of links to a source, of this run"},
    "sources/weights.py": {"symlink_to": "a folder of links to a source, of this run"},
    "report/page.py": {"read_text": "our own templates"},
    "report/svg.py": {"savefig": "a picture in memory"},
    "report/table_file.py": {"savefig": "a picture in memory"},
    "versions.py": {"read_text": "our own pyproject.toml"},
}


def calls(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every call that opens, writes or moves a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            method = isinstance(node.func, ast.Attribute)
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
            if name in CALLS and (method or name not in OURS):
                yield node.lineno, name


def offences(name: str, source: str) -> list[str]:
    allowed = EXCEPTIONS.get(name, {})
    if name.startswith(DOORS):
        return []
    return [f"{name}:{line}: {call}(): {CALLS[call]}" for line, call in calls(source) if call not in allowed]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_are_opened_and_written_in_two_places(path: Path) -> None:
    assert offences(path.relative_to(PACKAGE).as_posix(), path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "open('x', 'w')",
        "Path('x').write_text('')",
        "Path('x').open('wb')",
        "shutil.copyfile('a', 'b')",
        "save_file({}, 'x')",
        "p.read_bytes()",
    ],
)
def test_an_offence_is_found_and_names_the_function(line: str) -> None:
    (found,) = offences("engines/new.py", f"def f():\n    {line}\n")
    assert found.startswith("engines/new.py:2: ")
    assert "dq_deploy.artifacts." in found


def test_an_exception_that_nobody_needs_goes() -> None:
    unused = {
        (name, call)
        for name, allowed in EXCEPTIONS.items()
        for call in allowed
        if call not in {found for _, found in calls((PACKAGE / name).read_text())}
    }
    assert unused == set()
