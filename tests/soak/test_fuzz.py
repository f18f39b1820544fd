"""A few seconds of the fuzzer, and every input that has ever crashed; the long run is ``make soak``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.soak import fuzz


@pytest.mark.skipif(find_spec("atheris") is None, reason="the fuzzer (atheris, the extra [soak]) is not installed")
def test_a_few_seconds_of_fuzzing(tmp_path: Path) -> None:
    result = fuzz.run(4, tmp_path)
    assert result.crashes == []
    assert result.inputs > 100
    assert result.features > 100, "the fuzzer must see the code that it fuzzes"


def test_seeds_are_read_and_what_has_crashed_ends_in_words(tmp_path: Path) -> None:
    known = fuzz.targets()
    (tmp_path / "model.onnx.data").write_bytes(bytes(64))
    inputs = [*fuzz.seeds().values(), *(path.read_bytes() for path in fuzz.CORPUS.glob("*"))]
    for data in inputs:
        fuzz.judged(data, tmp_path, known)
    good = fuzz.seeds()
    for label in ("manifest-checkpoint", "manifest-bundle", "graph", "graph-outside", "graph-numbered", "tensors", "config", "index"):
        name = list(known)[good[label][0]]
        (tmp_path / name).write_bytes(good[label][1:])
        known[name](tmp_path / name)
