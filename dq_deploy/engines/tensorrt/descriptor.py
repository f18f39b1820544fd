"""TensorRT-RTX and TensorRT in the table of engines."""

from __future__ import annotations

from ..descriptors.descriptor import Builder, EngineDescriptor, Products, Triton
from ..descriptors.version_rules import same_or_compatible

_CHILD = "dq_deploy.engines.tensorrt.child"
_RUNNER = "dq_deploy.engines.tensorrt.runner:TensorRtRunner"
_KERNELS = "dq_deploy.engines.tensorrt.layer_dump:parse_dump"
_FUSE = "dq_deploy.engines.tensorrt.fused_attention:fuse_attentions"
_OPTIONS = ("optimization_level", "workspace_mb", "weight_streaming")
_DATA_CENTER = {"9.0": "Hopper", "10.0": "Blackwell for data centers", "10.3": "Blackwell for data centers"}

TENSORRT_RTX = EngineDescriptor(
    name="tensorrt-rtx",
    title="TensorRT-RTX",
    modules=("tensorrt_rtx", "polygraphy"),
    distributions=("tensorrt-rtx",),
    runner=_RUNNER,
    runs=("engine",),
    options=("cuda_graphs", "device"),
    settings={"cuda_graphs": True},
    # Its support matrices (1.0 to 1.7) list FP8 and FP4 in matrix products, and INT8 and INT4 of weights alone. That INT8 products are
    # executed, or FP8 convolutions, no document promises; its compiler plans both.
    products=(
        Products("int8", planned=(8, 0)),  # on 7.5 a convolution becomes FP32, and a MatMul does not build
        Products("fp8", ("gemm",), documented=True, capability=(8, 9), planned=(8, 9)),
        Products("fp8", ("conv",), capability=(8, 9), planned=(8, 9)),
        Products("fp4", ("gemm",), documented=True, capability=(12, 0), planned=(12, 0)),
    ),
    weight_formats=("int8", "int4"),
    weights_seen=("int4",),
    gpu=True,
    extra="tensorrt-rtx",
    purpose="TensorRT-RTX engines, built without a GPU",
    builder=Builder(
        child=_CHILD,
        target="qdq",
        file="model.engine",
        statement="chosen ahead of time by the compiler; not executed on this machine",
        reads=same_or_compatible,
        device="GPUs of the compute capabilities given",
        options=_OPTIONS,
        # As 1.7 has it: the first two are accepted and do nothing, the third fails the build.
        refused={
            "timing_cache": "TensorRT-RTX times no kernels when it builds: its timing cache stays empty",
            "hardware_compatibility": "TensorRT-RTX ignores it: give a --compute-capability for each GPU instead",
            "version_compatible": "TensorRT-RTX builds no such engine: build again for each version",
        },
        # What 1.x compiles for ahead of time.
        compute_capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
        default_capabilities=("8.9", "12.0"),
        elsewhere={c: f"{c} is {what}, which only --backend tensorrt builds for" for c, what in _DATA_CENTER.items()},
        otherwise="tensorrt",
        kernels=_KERNELS,
        fuse=_FUSE,
        profiles=True,
    ),
)
TENSORRT = EngineDescriptor(
    name="tensorrt",
    title="TensorRT",
    modules=("tensorrt", "polygraphy"),
    distributions=("tensorrt",),
    runner=_RUNNER,
    runs=("engine",),
    options=("cuda_graphs", "device"),
    settings={"cuda_graphs": True},
    # "Working with quantized types": INT8, FP8 and FP4 of weights and activations, INT4 of weights.
    products=(
        Products("int8", documented=True),
        Products("fp8", documented=True, capability=(8, 9)),
        Products("fp4", ("gemm",), documented=True, capability=(10, 0)),
    ),
    weight_formats=("int4",),
    gpu=True,
    extra="tensorrt",
    purpose="TensorRT engines, built and run on the GPU that they are for",
    note=(
        "\nIts libraries come from NVIDIA's own package index, and it builds on a machine with an NVIDIA GPU only. "
        "Without one, --backend tensorrt-rtx builds ahead of time."
    ),
    builder=Builder(
        child=_CHILD,
        target="qdq",
        file="model.engine",
        statement="chosen by the builder for this machine's GPU; not a timing",
        reads=same_or_compatible,
        device="GPU of the machine that it runs on",
        options=(*_OPTIONS, "timing_cache", "hardware_compatibility", "version_compatible"),
        kernels=_KERNELS,
        fuse=_FUSE,
        profiles=True,
    ),
    triton=Triton("tensorrt", "model.plan", platform="tensorrt_plan", device="gpu"),
)
