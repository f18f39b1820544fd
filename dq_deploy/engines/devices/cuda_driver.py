"""What the CUDA driver says of the first GPU, asked without any CUDA library."""

from __future__ import annotations

import ctypes

# CUdevice_attribute of cuda.h
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


def gpu_compute_capability() -> tuple[int, int]:
    """(major, minor) of the first GPU, from the CUDA driver. Raises OSError or RuntimeError when there is no driver or no GPU."""
    driver = ctypes.CDLL("libcuda.so.1")
    device = ctypes.c_int()
    _check(driver.cuInit(0), "cuInit")
    _check(driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, attribute in ((major, _COMPUTE_CAPABILITY_MAJOR), (minor, _COMPUTE_CAPABILITY_MINOR)):
        _check(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "cuDeviceGetAttribute")
    return major.value, minor.value


def _check(status: int, function: str) -> None:
    if status != 0:
        raise RuntimeError(f"CUDA driver: {function} failed with status {status}")
