"""All findings together: packages, whether they work, the GPU, the machine."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from packaging.version import Version
from pydantic import BaseModel

from ..engines.devices.machine import INTEGER_INSTRUCTIONS, machine_info
from ..engines.onnxruntime.descriptor import CUDA
from ..progress import Progress, silent
from ..versions import DISTRIBUTION, installed_version, requirements
from .finding import Finding
from .packages import InstalledVersion, engine_findings, package_findings
from .probes import Probed, distributions, probe_all

_OLDEST_PYTHON = (3, 11)
_SMALL_DISK = 2 << 30


class Diagnosis(BaseModel):
    """Everything that was looked at; truthy when nothing is wrong."""

    findings: list[Finding]
    machine: dict[str, Any]

    def __bool__(self) -> bool:
        return not self.wrong

    @property
    def wrong(self) -> list[Finding]:
        """What will fail."""
        return [finding for finding in self.findings if finding.state == "wrong"]


def diagnose(*, version_of: InstalledVersion = installed_version, progress: Progress = silent) -> Diagnosis:
    """Look at the installation and the machine. Takes as long as importing every installed engine once, each in its own process."""
    installed = [module for module, names in distributions().items() if any(map(version_of, names))]
    probed = probe_all([*installed, "driver"], progress=progress)
    machine = machine_info()
    findings = [*_itself(version_of), *package_findings(requirements(), version_of), *engine_findings(version_of)]
    findings += [*working(probed, version_of), *graphics(probed, version_of), *_hardware(machine)]
    return Diagnosis(findings=findings, machine=machine)


def _itself(version_of: InstalledVersion) -> Iterator[Finding]:
    python, version = ".".join(map(str, sys.version_info[:3])), version_of(DISTRIBUTION)
    good = sys.version_info >= _OLDEST_PYTHON
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    yield Finding(name="python", state="ok" if good else "wrong", found=python, meaning="" if good else f"{oldest} or newer is needed")
    if version:
        yield Finding(name=DISTRIBUTION, state="ok", found=version)
    else:
        yield Finding(name=DISTRIBUTION, state="note", found="a checkout that is not installed", mend="pip install --editable .")


def working(probed: Mapping[str, Probed], version_of: InstalledVersion = installed_version) -> Iterator[Finding]:
    """A finding for each library that was asked and did not answer."""
    brought_by = distributions()
    for module, result in probed.items():
        if result.error is None or module not in brought_by:
            continue
        pins = [f"{name}=={version}" for name in brought_by[module] if (version := version_of(name))]
        yield Finding(
            name=f"import {module}",
            state="wrong",
            found=result.error,
            meaning="it is installed and does not load",
            mend=f"pip install --force-reinstall {' '.join(pins)}",
        )


def graphics(probed: Mapping[str, Probed], version_of: InstalledVersion = installed_version) -> Iterator[Finding]:
    """The NVIDIA driver, and whether torch and ONNX Runtime find their way to the GPU."""
    driver = probed["driver"].found
    if driver.get("code") is None:
        meaning = "TensorRT-RTX engines are built here and run elsewhere; nothing else needs a GPU"
        yield Finding(name="NVIDIA driver", state="absent", found="none", meaning=meaning)
        return
    if driver["code"] != 0 or not driver["gpus"]:
        found = f"CUDA error {driver['code']}, {driver.get('gpus', 0)} GPUs"
        meaning = "the driver is there and gives no GPU: nvidia-smi says more; in a container, start it with --gpus all"
        yield Finding(name="NVIDIA driver", state="wrong", found=found, meaning=meaning)
        return
    yield Finding(name="NVIDIA driver", state="ok", found=f"for CUDA {driver['cuda']}, {driver['gpus']} GPU(s)")
    yield from _torch_on_gpu(probed.get("torch"), driver["cuda"])
    yield from _onnxruntime_on_gpu(probed.get(CUDA.modules[0]), version_of)


def _torch_on_gpu(torch: Probed | None, driver_cuda: str) -> Iterator[Finding]:
    if torch is None or torch.error or torch.found["cuda"]:
        return
    built = torch.found["built_for_cuda"]
    if built is None:
        yield Finding(name="torch", state="note", found="a build for the CPU", meaning="quantize --device cuda needs a CUDA build",
                      mend="pip install --force-reinstall torch")  # fmt: skip
        return
    newer = Version(built) > Version(driver_cuda)
    meaning = f"the driver knows CUDA {driver_cuda} at the most" if newer else "torch.cuda.is_available() is false"
    mend = "update the NVIDIA driver, or install a torch that was built for an older CUDA"
    yield Finding(name="torch", state="wrong", found=f"built for CUDA {built}", meaning=meaning, mend=mend)


def _onnxruntime_on_gpu(runtime: Probed | None, version_of: InstalledVersion) -> Iterator[Finding]:
    if runtime is None or runtime.error or not version_of(CUDA.distributions[0]):
        return
    used = runtime.found["providers"].get("CUDAExecutionProvider", "it is not in the build that was imported")
    if used != "CUDAExecutionProvider":
        yield Finding(
            name=CUDA.distributions[0],
            state="wrong",
            found=used if used != "CPUExecutionProvider" else "asked for CUDA, runs on the CPU",
            meaning="CUDA or cuDNN of the version that it was built for is missing",
            mend='pip install --force-reinstall "onnxruntime-gpu[cuda,cudnn]"',
        )


def _hardware(machine: Mapping[str, Any]) -> Iterator[Finding]:
    fast = [name for name in INTEGER_INSTRUCTIONS if name in machine["instructions"]]
    slow = "integer products are slower than float ones on this CPU; accuracy checks are as good as anywhere"
    yield Finding(
        name="CPU", state="ok" if fast else "note", found=f"{machine['cpu']}, {machine['cores']} cores", meaning=", ".join(fast) or slow
    )
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield Finding(name="memory", state="ok", found=f"{memory / 2**30:.0f} GiB")
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    small = free < _SMALL_DISK
    yield Finding(
        name="temporary files",
        state="note" if small else "ok",
        found=f"{free / 2**30:.1f} GiB free in {folder}",
        meaning="distillation and builds write there" if small else "",
        mend="set TMPDIR to a larger disk" if small else None,
    )
