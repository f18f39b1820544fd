"""What Triton does with a repository's configuration, done here: it is parsed with Triton's own schema and requests are batched by it.

Triton itself cannot be installed from a package index. What its server does between a request and the model is small: it checks each input
against the configuration, puts requests together along the first dimension, reshapes, and takes the output apart again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pool, message_factory, text_format

from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.engines.openvino.runner import OpenVinoRunner

Request = Mapping[str, np.ndarray[Any, Any]]
TYPES = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT64": np.int64}


def parse(path: Path) -> Any:
    """``config.pbtxt`` as Triton reads it. Raises what protobuf raises for an unknown field, a wrong type, a bad value."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile((Path(__file__).parent / "data" / "model_config.binpb").read_bytes())
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return text_format.Parse(path.read_text(), message())


class TritonLike:
    """One model of a repository."""

    def __init__(self, repository: Path) -> None:
        (model,) = (path for path in repository.iterdir() if path.is_dir())
        self.config = parse(model / "config.pbtxt")
        assert self.config.name == model.name
        files = {"onnxruntime": "model.onnx", "openvino": "model.xml"}
        file = model / "1" / files[self.config.backend]
        self.runner = OpenVinoRunner(file) if self.config.backend == "openvino" else OnnxRuntimeRunner(file, optimized=False)

    def infer(self, requests: Sequence[Request]) -> list[np.ndarray[Any, Any]]:
        """Answers to requests that arrive together."""
        for request in requests:
            self._check(request)
        if not self.config.max_batch_size:
            return [self.runner.run(request) for request in requests]
        sizes = [len(request[self.config.input[0].name]) for request in requests]
        assert sum(sizes) <= self.config.max_batch_size, "Triton would make two batches of these"
        whole = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
        for tensor in self.config.input:
            if tensor.HasField("reshape"):
                whole[tensor.name] = whole[tensor.name].reshape(-1, *tensor.reshape.shape)
        output = self.runner.run(whole)
        self._check_shape(self.config.output[0], output)
        return np.split(output, np.cumsum(sizes)[:-1])

    def _check(self, request: Request) -> None:
        assert set(request) == {tensor.name for tensor in self.config.input}
        for tensor in self.config.input:
            assert request[tensor.name].dtype == TYPES[_name(tensor, "data_type")]
            self._check_shape(tensor, request[tensor.name])
        if self.config.max_batch_size:
            assert len({len(value) for value in request.values()}) == 1, "every input of a request has the same first dimension"

    def _check_shape(self, tensor: Any, array: np.ndarray[Any, Any]) -> None:
        shape = array.shape[1:] if self.config.max_batch_size else array.shape
        assert len(shape) == len(tensor.dims)
        assert all(want in (-1, have) for want, have in zip(tensor.dims, shape, strict=True))


def _name(message: Any, field: str) -> str:
    """An enumeration's value by name."""
    return str(message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[getattr(message, field)].name)
