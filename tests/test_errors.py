"""Running out of memory, in the words of every allocator that is met."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from dq_deploy.commands.errors import known_error
from dq_deploy.errors import ArtifactError, ResourceError, out_of_memory, raise_if_out_of_memory
from tests.bundles import write_graph


def raised(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (raised(lambda: torch.empty(10**14)), "363.8 TiB were requested"),
        (raised(lambda: np.empty(10**14, np.float32)), "364 TiB were requested"),
        (raised(lambda: bytearray(10**15)), "out of memory: MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"), "20 GiB were requested"),
        (RuntimeError("Failed to allocate memory for requested buffer of size 4294967296"), "4 GiB were requested"),
        (RuntimeError("Exception from src/inference: std::bad_alloc"), "std::bad_alloc"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
    ],
    ids=["torch", "numpy", "python", "cuda", "onnxruntime", "openvino", "system"],
)
def test_every_allocators_error_is_a_resource_error_that_says_how_much(error: BaseException, asked: str) -> None:
    found = out_of_memory(error)
    assert isinstance(found, ResourceError)
    assert found.message.startswith("out of memory: ")
    assert asked in found.message
    with pytest.raises(ResourceError, match="out of memory"):
        raise_if_out_of_memory(error)


def test_what_an_error_was_made_from_counts_and_other_errors_do_not() -> None:
    def wrapped(cause: Exception) -> None:
        raise ArtifactError("the builder is out of memory, or so it looks") from cause

    memory, other = (raised(lambda cause=cause: wrapped(cause)) for cause in (raised(lambda: torch.empty(10**14)), ValueError("shape")))
    assert isinstance(known_error(memory), ResourceError)
    assert known_error(other) is other
    raise_if_out_of_memory(other)
    raise_if_out_of_memory(RuntimeError("shape '[2]' is invalid for input of size 3"))


def test_what_onnx_runtime_does_not_run_is_said_in_a_sentence(tmp_path: Path) -> None:
    """A network that computes in bfloat16 inside its forward ends so."""
    graph = """<ir_version: 10, opset_import: ["": 21]> g (bfloat16[2] x) => (bfloat16[2] y) { y = Mul(x, x) }"""
    with pytest.raises(Exception, match="NOT_IMPLEMENTED") as caught:
        onnxruntime.InferenceSession(str(write_graph(tmp_path / "g.onnx", graph)), providers=["CPUExecutionProvider"])
    found = known_error(caught.value)
    assert isinstance(found, ArtifactError)
    assert re.match(r"ONNX Runtime does not run the graph: .*Could not find an implementation for Mul", found.message)
