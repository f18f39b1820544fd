"""Coverage-guided fuzzing of the door in (dq_deploy/artifacts/reading and what reads through it).

Any bytes in the place of any file must end in one of our errors, or be read: every other exception, a hang of 20 s, or 2 GiB of memory is a
crash. ``python -m tests.soak.fuzz --seconds 600 --work DIR`` is the fuzzer itself (atheris, which ends its process); ``run`` starts it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
_GOLDEN = Path(__file__).parents[1] / "golden" / "schema-1"
TIMEOUT_S, MEMORY_MB = 20, 2048


@dataclass(frozen=True)
class Fuzzed:
    """Inputs tried, distinct features of the code reached, and what crashed (the fuzzer's last words)."""

    seconds: float
    inputs: int
    features: int
    crashes: list[str]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def run(seconds: float, work: Path) -> Fuzzed:
    """Fuzz for so long in a process of its own; the corpus that it finds stays in ``work`` and is gone on from."""
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.soak.fuzz", "--seconds", str(seconds), "--work", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 300)
    text = done.stderr + done.stdout
    finished = re.search(r"Done (\d+) runs in (\d+) second", text)
    counted = re.findall(r"^#(\d+)\s.*?\bft: (\d+)", text, re.MULTILINE)
    crashed = done.returncode != 0 or finished is None
    inputs = int(finished[1]) if finished else int(counted[-1][0]) if counted else 0
    return Fuzzed(float(finished[2]) if finished else 0.0, inputs, int(counted[-1][1]) if counted else 0, [text[-3000:]] if crashed else [])


def targets() -> dict[str, Callable[[Path], object]]:
    """By name of the file what is done with it: every way in which files of others are read without an engine."""
    from dq_deploy.artifacts.details import parse_details
    from dq_deploy.artifacts.manifest import parse_manifest
    from dq_deploy.artifacts.reading import check_onnx, read_arrays, read_ir, read_record
    from dq_deploy.commands.options import read_config
    from dq_deploy.engines.layer_report import LayerReport
    from dq_deploy.engines.loading.engine_files import builder_of
    from dq_deploy.sources.pipeline_index import read_components, read_pipeline_index

    def manifest(path: Path) -> None:
        found = parse_manifest(path)
        if found.kind == "engine":
            builder_of(path.parent, parse_details(path.parent, found))
        parse_details(path.parent, found)
        json.loads(found.to_json())

    def index(path: Path) -> None:
        read_components(path.parent)
        read_pipeline_index(path.parent)

    def graph(path: Path) -> None:
        check_onnx(path)
        read_ir(path)

    return {
        "manifest.json": manifest,
        "model.onnx": graph,
        "model.safetensors": lambda path: read_arrays(path, ["a", "b"]),
        "layers.cpu.json": lambda path: read_record(path, LayerReport, "a layer report"),
        "config.json": read_config,
        "model_index.json": index,
    }


def judged(data: bytes, folder: Path, known: dict[str, Callable[[Path], object]]) -> None:
    """One input: its first byte says which file it stands for."""
    from dq_deploy.errors import DqDeployError

    if not data:
        return
    name = list(known)[data[0] % len(known)]
    path = folder / name
    path.write_bytes(data[1:])
    try:
        known[name](path)
    except DqDeployError as error:
        if error.exit_code not in (2, 3) or not error.message:
            raise RuntimeError(f"no error for a user to fix: {error!r}") from error
    finally:
        path.unlink()


def seeds() -> dict[str, bytes]:
    """What the fuzzer begins with: one good file of each kind, and graphs with data files."""
    from tests.attacks.hostile import entry, relu, safetensors, set_entry

    names = list(targets())
    outside = relu(tensors=[])
    tensor = outside.graph.initializer.add(name="w", data_type=1, dims=[4], data_location=1)
    tensor.external_data.add(key="location", value="model.onnx.data")
    numbered = type(outside)()
    numbered.CopyFrom(outside)
    set_entry("offset", "0")(numbered)
    set_entry("length", "16")(numbered)
    report = {"backend": "openvino", "version": "1", "compute_capability": None, "kernels": [], "layers": [], "float_layers": []}
    files = {
        "manifest-checkpoint": ("manifest.json", (_GOLDEN / "checkpoint" / "manifest.json").read_bytes()),
        "manifest-bundle": ("manifest.json", (_GOLDEN / "bundle" / "manifest.json").read_bytes()),
        "graph": ("model.onnx", relu().SerializeToString()),
        "graph-outside": ("model.onnx", outside.SerializeToString()),
        "graph-numbered": ("model.onnx", numbered.SerializeToString()),
        "tensors": ("model.safetensors", safetensors({"a": entry(0, 16), "b": entry(16, 24, dtype="I8", shape=(2, 4))}, bytes(24))),
        "report": ("layers.cpu.json", json.dumps(report).encode()),
        "config": ("config.json", b'{"preset": "w4a8", "steps": 20, "keep": {"@first": "float"}}'),
        "index": (
            "model_index.json",
            b'{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}',
        ),
    }
    return {label: bytes([names.index(name)]) + content for label, (name, content) in files.items()}


def _fuzz(seconds: float, work: Path) -> None:
    import atheris  # type: ignore[import-not-found,unused-ignore]

    with atheris.instrument_imports(include=["dq_deploy.artifacts", "dq_deploy.commands.options", "dq_deploy.sources.pipeline_index"]):
        known = targets()
    found = work / "corpus"
    found.mkdir(exist_ok=True)
    for label, content in seeds().items():
        (found / f"seed-{label}").write_bytes(content)
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="dq-deploy-fuzz-", dir=shared if os.access(shared, os.W_OK) else None))
    (folder / "model.onnx.data").write_bytes(bytes(64))
    for path in CORPUS.glob("*"):  # what has crashed once
        judged(path.read_bytes(), folder, known)
    words = work / "words.txt"
    tokens = [
        "schema_version",
        "kind",
        "bundle",
        "checkpoint",
        "details",
        "files",
        "sha256",
        "timesteps",
        "location",
        "offset",
        "length",
        "../",
    ]
    words.write_text("".join(f'"{word}"\n' for word in [*tokens, "dtype", "shape", "data_offsets", "F32", "__metadata__", "NaN", "1e999"]))
    options = [f"-max_total_time={seconds:g}", f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MB}", "-max_len=20000", f"-dict={words}"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={work}/", str(found)], lambda data: judged(data, folder, known))
    atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    _fuzz(arguments.seconds, arguments.work)
