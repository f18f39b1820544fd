"""The one door in: everything that is read from files of others passes through here, and is checked on the way.

``paths``: which names may be followed from an artefact's folder, and which links. ``plain``: bytes and JSON. ``onnx_files``: ONNX graphs,
and the data files that they name. ``safetensors_files``: tensors. ``pickled_files``: tensors in the pickles of a source, which is asked for
explicitly (``sources.allow_pickles``); no artefact has any. Nothing read here runs as code.

Lint keeps everything else away from the files (``banned-api`` in ``pyproject.toml``, ``tests/artifacts/test_doors.py``).
"""

from .onnx_files import check_onnx, check_structure, data_problem, read_ir, read_onnx, without_links
from .pickled_files import read_pickled_tensors
from .plain import as_record, read_bytes, read_json, read_record, refuse_stand_in
from .safetensors_files import check_safetensors, read_arrays, read_tensors, tensor_shapes

__all__ = [
    "as_record",
    "check_onnx",
    "check_safetensors",
    "check_structure",
    "data_problem",
    "read_arrays",
    "read_bytes",
    "read_ir",
    "read_json",
    "read_onnx",
    "read_pickled_tensors",
    "read_record",
    "read_tensors",
    "refuse_stand_in",
    "tensor_shapes",
    "without_links",
]
