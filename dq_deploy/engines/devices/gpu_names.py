"""NVIDIA's GPUs by name, with their compute capabilities (developer.nvidia.com/cuda-gpus)."""

from __future__ import annotations

import re
from collections.abc import Iterable

GPUS: dict[str, tuple[str, ...]] = {
    "7.5": ("GTX 1650", "GTX 1660", "RTX 2060", "RTX 2070", "RTX 2080", "TITAN RTX", "Quadro RTX 4000", "Quadro RTX 5000",
            "Quadro RTX 6000", "Quadro RTX 8000", "T4"),
    "8.0": ("A30", "A100"),
    "8.6": ("RTX 3050", "RTX 3060", "RTX 3070", "RTX 3080", "RTX 3090", "RTX A2000", "RTX A4000", "RTX A4500", "RTX A5000", "RTX A6000",
            "A2", "A10", "A16", "A40"),
    "8.9": ("RTX 4050", "RTX 4060", "RTX 4070", "RTX 4080", "RTX 4090", "RTX 2000 Ada", "RTX 4000 Ada", "RTX 4500 Ada", "RTX 5000 Ada",
            "RTX 6000 Ada", "L4", "L40", "L40S"),
    "9.0": ("H100", "H200", "GH200"),
    "10.0": ("B200", "GB200"),
    "10.3": ("B300", "GB300"),
    "12.0": ("RTX 5050", "RTX 5060", "RTX 5070", "RTX 5080", "RTX 5090", "RTX PRO 2000", "RTX PRO 4000", "RTX PRO 4500", "RTX PRO 5000",
             "RTX PRO 6000"),
    "12.1": ("GB10", "DGX Spark"),
}  # fmt: skip
# What a name may have or lack without being another GPU's.
_WITHOUT = re.compile(r"NVIDIA|GEFORCE|RTX|GTX|SUPER|BLACKWELL|GENERATION|LAPTOP|GPU|TI\b|[^A-Z0-9]")


def gpu_named(text: str) -> tuple[str, str] | None:
    """Name and compute capability of the GPU that a text names ("4090", "GeForce RTX 4090 Ti"); None where it names none that is known."""
    return _BY_NAME.get(_plain(text))


def capabilities_of_names(given: Iterable[str]) -> list[str]:
    """For names of GPUs that stand in the place of compute capabilities, which one each has, in sentences."""
    return [f"the {gpu[0]} has compute capability {gpu[1]}" for text in given if (gpu := gpu_named(text))]


def _plain(name: str) -> str:
    return _WITHOUT.sub("", name.upper())


_BY_NAME = {_plain(name): (name, capability) for capability, names in GPUS.items() for name in names}
