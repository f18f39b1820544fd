"""ONNX Runtime in the table of engines: on the CPU, and on an NVIDIA GPU by two of its providers."""

from __future__ import annotations

from dataclasses import replace

from ..descriptors.descriptor import EngineDescriptor, Products, Triton

# Which provider a session of one operator gets, of those requested: a provider whose libraries are missing gives way to the CPU's.
_PROBE = """
import numpy, onnx, onnxruntime
from onnx import TensorProto, helper
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
used = {}
for provider in onnxruntime.get_available_providers():
    if provider in ("CPUExecutionProvider", "CUDAExecutionProvider"):
        try:
            used[provider] = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider]).get_providers()[0]
        except Exception as error:
            used[provider] = str(error).splitlines()[0]
found = {"providers": used}
"""

ONNXRUNTIME = EngineDescriptor(
    name="onnxruntime",
    title="ONNX Runtime",
    modules=("onnxruntime",),
    distributions=("onnxruntime", "onnxruntime-gpu"),
    runner="dq_deploy.engines.onnxruntime.runner:OnnxRuntimeRunner",
    runs=("bundle",),
    options=("providers", "optimized", "threads"),
    settings={"providers": ("CPUExecutionProvider",)},
    parts=True,
    targets=("onnxruntime", "qdq"),
    # Its quantization guide names INT8 on CPUs (uint8 and int8 activations, int8 weights); around FP8 codes it multiplies in float.
    products=(Products("int8", documented=True, executed=True),),
    weight_formats=("int8", "int4"),
    weights_seen=("int4",),
    extra="cpu",
    purpose="ONNX Runtime on the CPU: check, sample and bench",
    note=" (or [gpu], never both)",
    probe=_PROBE,
    triton=Triton("onnxruntime", "model.onnx", platform="onnxruntime_onnx"),
)
CUDA = replace(
    ONNXRUNTIME,
    name="onnxruntime-cuda",
    variant_of="onnxruntime",
    distributions=("onnxruntime-gpu",),
    settings={"providers": ("CUDAExecutionProvider",)},
    gpu=True,
    products=(Products("int8"),),  # Q/DQ around products in float
    extra="gpu",
    purpose="ONNX Runtime on an NVIDIA GPU, instead of the extra cpu",
    note="",
)
TENSORRT_PROVIDER = replace(
    CUDA, name="onnxruntime-tensorrt", settings={"providers": ("TensorrtExecutionProvider",)}, products=(Products("int8", documented=True),)
)
