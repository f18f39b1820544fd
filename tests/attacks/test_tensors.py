"""Safetensors that lie about themselves, in a checkpoint and in a pipeline's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from dq_deploy.artifacts.reading import check_safetensors, read_arrays, read_tensors
from dq_deploy.errors import ArtifactError
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.attacks.hostile import copy_of, entry, safetensors
from tests.command_line import Cli, assert_refused
from tests.tiny import resealed

DATA = bytes(32)
HOSTILE = {
    "empty": (b"", "claims 0 bytes, and the file has 0"),
    "shorter than its length": (b"\x10", "and the file has 1"),
    "a header longer than the file": (safetensors({}, length=1 << 20), "claims 1048576 bytes"),
    "a header of an exabyte": (safetensors({}, length=1 << 60), "claims 1152921504606846976 bytes"),
    "no JSON": (safetensors("not json"), "Expecting value"),
    "no UTF-8": (b"\x02" + bytes(7) + b"\xff\xfe", "can't decode"),
    "a list": (safetensors("[]"), "its header is not a JSON object"),
    "a thousand brackets": (safetensors("[" * 100_000), "nested too deeply"),
    "a number of a million digits": (safetensors('{"a": ' + "9" * 1_000_000 + "}"), "digits"),
    "NaN": (safetensors('{"a": NaN}'), "NaN is not a JSON number"),
    "an overlap": (safetensors({"a": entry(0, 16), "b": entry(8, 24)}, bytes(24)), "tensor 'b' begins at byte 8, inside of the one before"),
    "the same bytes twice": (safetensors({"a": entry(0, 16), "b": entry(0, 16)}, bytes(16)), "inside of the one before"),
    "a hole": (safetensors({"a": entry(0, 16), "b": entry(20, 36)}, bytes(36)), "tensor 'b' begins at byte 20, behind a hole"),
    "a hole at the start": (safetensors({"a": entry(16, 32)}, DATA), "tensor 'a' begins at byte 16, behind a hole"),
    "bytes behind the last": (safetensors({"a": entry(0, 16)}, DATA), "its tensors take 16 bytes, and 32 are there"),
    "bytes missing": (safetensors({"a": entry(0, 16)}, bytes(8)), "its tensors take 16 bytes, and 8 are there"),
    "a key twice": (
        safetensors('{"a": %s, "a": %s}' % (2 * (json.dumps(entry(0, 16)),)), bytes(16)),
        "key 'a' stands there twice",
    ),
    "a dtype twice": (
        safetensors('{"a": {"dtype": "F32", "dtype": "I32", "shape": [4], "data_offsets": [0, 16]}}', bytes(16)),
        "key 'dtype' stands there twice",
    ),
    "another shape": (safetensors({"a": entry(0, 16, shape=(5,))}, bytes(16)), "has 16 bytes, and F32 [5] takes 20"),
    "a shape whose product overflows": (safetensors({"a": entry(0, 16, shape=(2**32, 2**32, 4))}, bytes(16)), "takes"),
    "a negative size": (safetensors({"a": entry(0, 16, shape=(-4,))}, bytes(16)), "has shape [-4]"),
    "a size that is not a number": (safetensors({"a": entry(0, 16, shape=("4",))}, bytes(16)), "has shape ['4']"),
    "a size that is true": (safetensors({"a": entry(0, 4, shape=(True,))}, bytes(4)), "has shape [True]"),
    "a size of a float": (safetensors({"a": entry(0, 16, shape=(4.0,))}, bytes(16)), "has shape [4.0]"),
    "offsets the wrong way round": (safetensors({"a": entry(16, 0)}, bytes(16)), "has -16 bytes"),
    "a negative offset": (safetensors({"a": entry(-16, 0)}, bytes(16)), "at bytes [-16, 0]"),
    "an unknown dtype": (safetensors({"a": entry(0, 16, dtype="PICKLE")}, bytes(16)), "of dtype 'PICKLE', which is not known"),
    "a dtype that is a list": (safetensors({"a": entry(0, 16, dtype=["F32"])}, bytes(16)), "of dtype ['F32']"),
    "another key": (safetensors({"a": {**entry(0, 16), "run": "rm"}}, bytes(16)), "must have a dtype, a shape and data_offsets"),
    "metadata that are not texts": (safetensors({"__metadata__": {"a": 1}}), "its metadata are not texts"),
    "a tensor that is a string": (safetensors({"a": "F32"}), "must have a dtype, a shape and data_offsets, and nothing else"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_files_that_lie(tmp_path: Path, kind: str) -> None:
    content, words = HOSTILE[kind]
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="not a valid safetensors file") as caught:
        check_safetensors(file)
    assert words in caught.value.message
    assert caught.value.hint
    with pytest.raises(ArtifactError):
        read_arrays(file, ["a"])
    with pytest.raises(ArtifactError):
        read_tensors(file)


def test_what_the_library_writes_is_taken(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "none": np.zeros((0, 4), np.int64), "one": np.array(3, np.uint8)}
    (tmp_path / "x.safetensors").write_bytes(save(arrays, metadata={"made": "here"}))
    found = read_arrays(tmp_path / "x.safetensors", [*arrays, "absent"])
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("kind", ["a key twice", "a hole", "a header of an exabyte"])
def test_in_a_checkpoint_whose_manifest_vouches_for_it(cli: Cli, plain_checkpoint: Checkpoint, tmp_path: Path, kind: str) -> None:
    checkpoint = copy_of(plain_checkpoint.artifact, tmp_path / "checkpoint")
    for name in ("model.safetensors", "reference.safetensors"):
        copied = Path(shutil.copytree(checkpoint, tmp_path / name))
        (copied / name).write_bytes(HOSTILE[kind][0])
        resealed(copied)
        for arguments in (("inspect", copied), ("export", copied, "-o", tmp_path / "o", "--target", "qdq")):
            assert_refused(cli(*arguments), 3, name, HOSTILE[kind][1], "hint: ")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", ["a key twice", "an overlap"])
def test_in_the_weights_of_a_pipeline(cli: Cli, pipeline_dir: Path, tmp_path: Path, kind: str) -> None:
    pipeline = copy_of(pipeline_dir, tmp_path / "pipeline")
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(HOSTILE[kind][0])
    assert_refused(cli("quantize", pipeline, "-o", tmp_path / "o"), 3, "diffusion_pytorch_model.safetensors", HOSTILE[kind][1], "hint: ")
