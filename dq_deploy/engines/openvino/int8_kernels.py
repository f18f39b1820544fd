"""OpenVINO's INT8 kernels: whether they are exact on this CPU, and whether a graph does better without them where they are not."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from ...artifacts import Artifact
from ...artifacts.details import BundleDetails
from ...artifacts.layer_bits import fraction_of_work, integer_activations, wider_weights
from ...errors import EnvironmentProblem
from ..devices.machine import machine_info
from .descriptor import OPENVINO

# One row of 64 equal codes at the end of their range: summed in pairs in 16 bits, 127·127 + 127·127 (shifted to u8: 255·127 + 255·127)
# leaves the range, so a kernel without exact sums cannot return 64·127².
_PROBE = """<ir_version: 10, opset_import: ["": 21]>
probe (float[1, 64] x) => (float[1, 32] y)
<float one = {1.0}, int8 zero = {0}>
{
    q = QuantizeLinear(x, one, zero)
    dq = DequantizeLinear(q, one, zero)
    dw = DequantizeLinear(w, one, zero)
    y = MatMul(dq, dw)
}"""
_NARROW_BITS = 6
_MOST_WIDE_WORK = 0.01
"""Of a network's multiply-accumulates with weights of 7 and 8 bits. All of it loses the shipped UNet 20 dB: saturation has a noise power of
10^-2.4 of the output's there, rounding 4-bit weights one of 10^-3.5; a hundredth of the first adds 0.5 dB to the second."""


@functools.cache
def int8_saturates() -> bool:
    """Whether OpenVINO's INT8 kernels on this CPU lose what exceeds 16 bits on the way (x86 with AVX2 or AVX512 but no VNNI).

    Found by running one, not by reading CPU flags. There is no exact INT8 kernel to choose instead.
    """
    return _saturates({})


def int8_serves(without_vnni: bool) -> bool:
    """Whether to take INT8 kernels on this CPU: where they give what the integers mean, or ``without_vnni`` (see ``int8_without_vnni``)."""
    return not int8_saturates() or without_vnni


def without_integer_kernels(openvino: Any) -> dict[str, str]:
    """The settings that compute quantized layers in float. OpenVINO does not document the first, so that it works is tried out.

    Without the second a float product of INT8 weights quantizes its activations once more, in groups of 32.
    """
    config = {"LP_TRANSFORMS_MODE": "NO", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    if int8_saturates() and _saturates(config):
        raise EnvironmentProblem(
            f"OpenVINO {openvino.__version__} has only INT8 kernels that saturate on this CPU, and no way around them",
            "use the onnxruntime engine",
        )
    return config


def _saturates(config: dict[str, str]) -> bool:
    import onnx

    openvino = OPENVINO.load()
    model = onnx.parser.parse_model(_PROBE)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((64, 32), 127, np.int8), "w"))
    with kept_signal_stack():
        compiled = openvino.Core().compile_model(openvino.Core().read_model(model.SerializeToString()), "CPU", config)
    result = np.array(compiled({"x": np.full((1, 64), 127, np.float32)})[0])
    return not np.allclose(result, 64 * 127 * 127, rtol=1e-3)


def int8_without_vnni(bundle: Artifact[BundleDetails]) -> bool:
    """Whether a CPU whose INT8 sums saturate does better on its INT8 kernels than in float: narrow weights, and mostly convolutions.

    The shipped UNet has on them a median SNR of 24 dB instead of 44 with weights of 8 bits and of 43.1 instead of 43.6 with 7; with 6 and
    fewer it has what it has in float (36.5 dB at W6A6, 35.3 at W4A8), in 0.7 to 0.8 of the time. But the shipped
    transformer, which is matrix products, takes 1.1 to 1.5 times the time of float on them. Layers are judged by their own bits.
    """
    layers = [layer for layer in bundle.details.layers if integer_activations(layer)]
    wide = fraction_of_work(layers, lambda layer: wider_weights(layer, _NARROW_BITS))
    return wide <= _MOST_WIDE_WORK and fraction_of_work(layers, lambda layer: layer.op == "conv2d") > 1 / 2


def manifest_details(bundle: Artifact[BundleDetails]) -> dict[str, Any]:
    """What an engine's manifest says of INT8 kernels: the CPU that the report is of, and whether they serve where they saturate."""
    machine = machine_info()
    built_on = {"cpu": machine["cpu"], "instructions": machine["instructions"], "int8_saturates": int8_saturates()}
    return {"built_on": built_on, "int8_without_vnni": int8_without_vnni(bundle)}


class _SignalStack(ctypes.Structure):
    """``stack_t`` of sigaltstack(2)."""

    _fields_: ClassVar = [("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t)]


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Leave this thread's alternate signal stack as it was.

    Each compiled model of OpenVINO 2026 installs one of its own and puts back the one it found when it goes. Two models that go in the
    order in which they came leave the freed stack of the first, and then Ctrl-C is a segmentation fault.
    """
    sigaltstack = getattr(ctypes.CDLL(None), "sigaltstack", None)
    before = _SignalStack()
    known = sigaltstack is not None and sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known and sigaltstack is not None:
            sigaltstack(ctypes.byref(before), None)
