"""Installed packages against what this version of dq-deploy asks for, and packages that do not live together."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from ..versions import DISTRIBUTION, installed_version
from .finding import Finding

EXTRAS = {
    "cpu": ("onnxruntime", "ONNX Runtime on the CPU: check, sample and bench"),
    "gpu": ("onnxruntime-gpu", "ONNX Runtime on an NVIDIA GPU, instead of the extra cpu"),
    "openvino": ("openvino", "the fastest CPU engine found: build-engine, sample and bench"),
    "tensorrt-rtx": ("tensorrt-rtx", "TensorRT-RTX engines, built without a GPU"),
    "tensorrt": ("tensorrt", "TensorRT engines, built and run on the GPU that they are for"),
    "accelerate": ("accelerate", "one quantization in several processes or on several GPUs"),
}
"""The extras of a user: the package without which there is nothing to speak of, and what each is for."""
_EXCLUSIVE = ("onnxruntime", "onnxruntime-gpu")
InstalledVersion = Callable[[str], str | None]


def requirements() -> list[Requirement]:
    """What this dq-deploy asks for: from its installation, or from pyproject.toml beside a checkout that is not installed."""
    if installed_version(DISTRIBUTION):
        return [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    project = Path(__file__).parents[2] / "pyproject.toml"
    if not project.is_file():
        return []
    table = tomllib.loads(project.read_text())["project"]
    found = [Requirement(line) for line in table["dependencies"]]
    for extra, lines in table["optional-dependencies"].items():
        found += [Requirement(f'{line} ; extra == "{extra}"') for line in lines]
    return found


def package_findings(wanted: Iterable[Requirement], version_of: InstalledVersion = installed_version) -> Iterator[Finding]:
    """A finding for each required package, and one for each extra of a user."""
    needed, extras = [], {name: list[Requirement]() for name in EXTRAS}
    for requirement in wanted:
        extra = _extra(requirement)
        if extra is None:
            needed.append(requirement)
        elif extra in extras:
            extras[extra].append(requirement)
    yield from (_required(requirement, version_of(requirement.name)) for requirement in needed)
    yield from _together(version_of)
    yield from (_optional(name, extras[name], version_of) for name in EXTRAS if extras[name])


def _extra(requirement: Requirement) -> str | None:
    """The extra that a requirement belongs to, None for one that everybody needs."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return None
    return next((name for name in EXTRAS if requirement.marker.evaluate({"extra": name})), "")


def fits(requirement: Requirement, version: str) -> bool:
    """Whether an installed version is one that is asked for; a local build such as 2.13.0+cpu counts as its release."""
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _required(requirement: Requirement, version: str | None) -> Finding:
    mend = f'pip install "{requirement.name}{requirement.specifier}"'
    if version is None:
        return Finding(name=requirement.name, state="wrong", found="not installed", meaning="every command needs it", mend=mend)
    if not fits(requirement, version):
        return Finding(name=requirement.name, state="wrong", found=version, meaning=f"{requirement.specifier} is needed", mend=mend)
    return Finding(name=requirement.name, state="ok", found=version)


def _optional(extra: str, wanted: list[Requirement], version_of: InstalledVersion) -> Finding:
    versions = {r.name: version_of(r.name) for r in wanted}
    (main, purpose), name, mend = EXTRAS[extra], f"[{extra}]", f'pip install "{DISTRIBUTION}[{extra}]"'
    found = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    old = [f"{r.name} {versions[r.name]} (needs {r.specifier})" for r in wanted if (v := versions[r.name]) and not fits(r, v)]
    if old and versions.get(main):
        return Finding(name=name, state="wrong", found=", ".join(old), meaning=purpose, mend=mend)
    if not versions.get(main):
        if extra in ("cpu", "gpu") and any(version_of(package) for package in _EXCLUSIVE):
            return Finding(name=name, state="absent", found=f"{main} is not installed, the other one is", meaning=purpose)
        return Finding(name=name, state="absent", found=f"{main} is not installed", meaning=purpose, mend=mend)
    missing = [package for package, version in versions.items() if not version]
    if missing:
        return Finding(name=name, state="wrong", found=f"{found}, without {', '.join(missing)}", meaning=purpose, mend=mend)
    return Finding(name=name, state="ok", found=found, meaning=purpose)


def _together(version_of: InstalledVersion) -> Iterator[Finding]:
    both = [name for name in _EXCLUSIVE if version_of(name)]
    if len(both) > 1:
        yield Finding(
            name=" and ".join(both),
            state="wrong",
            found=", ".join(f"{name} {version_of(name)}" for name in both),
            meaning="both install the module onnxruntime, and which of the two is imported is chance",
            mend=f'pip uninstall -y {" ".join(both)} && pip install "{DISTRIBUTION}[gpu]"    # or [cpu]',
        )
