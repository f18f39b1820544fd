"""Installed packages against what this version of dq-deploy asks for, and packages that do not live together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from ..engines.descriptors.registry import broken, engines
from ..versions import install_command, installed_version, installing, of_extra
from .finding import Finding

InstalledVersion = Callable[[str], str | None]


def extras() -> dict[str, tuple[str, str]]:
    """The extras of a user: the package without which there is nothing to speak of, and what each is for."""
    found: dict[str, tuple[str, str]] = {}
    for engine in engines().values():
        if engine.extra:
            found.setdefault(engine.extra, (engine.distributions[0], engine.purpose))
    return found | {"accelerate": ("accelerate", "one quantization in several processes or on several GPUs")}


def package_findings(requirements: Iterable[Requirement], version_of: InstalledVersion = installed_version) -> Iterator[Finding]:
    """A finding for each required package, and one for each extra of a user."""
    needed, optional = [], {name: list[Requirement]() for name in extras()}
    for requirement in requirements:
        extra = _extra(requirement)
        if extra is None:
            needed.append(requirement)
        elif extra in optional:
            optional[extra].append(requirement)
    yield from (_required(requirement, version_of(requirement.name)) for requirement in needed)
    yield from _together(version_of)
    yield from (_optional(name, lines, version_of) for name, lines in optional.items() if lines)


def _extra(requirement: Requirement) -> str | None:
    """The extra that a requirement belongs to, None for one that everybody needs."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return None
    return next((name for name in extras() if of_extra(requirement, name)), "")


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


def _optional(extra: str, requirements: list[Requirement], version_of: InstalledVersion) -> Finding:
    versions = {r.name: version_of(r.name) for r in requirements}
    (main, purpose), name, mend = extras()[extra], f"[{extra}]", installing(requirements)
    found = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    old = [f"{r.name} {versions[r.name]} (needs {r.specifier})" for r in requirements if (v := versions[r.name]) and not fits(r, v)]
    if old and versions.get(main):
        return Finding(name=name, state="wrong", found=", ".join(old), meaning=purpose, mend=mend)
    if not versions.get(main):
        if any(main in alternatives and any(map(version_of, alternatives)) for alternatives in _exclusive()):
            return Finding(name=name, state="absent", found=f"{main} is not installed, the other one is", meaning=purpose)
        return Finding(name=name, state="absent", found=f"{main} is not installed", meaning=purpose, mend=mend)
    missing = [package for package, version in versions.items() if not version]
    if missing:
        return Finding(name=name, state="wrong", found=f"{found}, without {', '.join(missing)}", meaning=purpose, mend=mend)
    return Finding(name=name, state="ok", found=found, meaning=purpose)


def _exclusive() -> list[tuple[str, ...]]:
    """Packages of which only one should be installed: they bring the same module."""
    return [engine.distributions for engine in engines().values() if len(engine.distributions) > 1]


def _together(version_of: InstalledVersion) -> Iterator[Finding]:
    for alternatives in _exclusive():
        both = [name for name in alternatives if version_of(name)]
        if len(both) > 1:
            *others, last = [extra for extra, (main, _) in extras().items() if main in both]
            yield Finding(
                name=" and ".join(both),
                state="wrong",
                found=", ".join(f"{name} {version_of(name)}" for name in both),
                meaning="both install the same module, and which of the two is imported is chance",
                mend=f"pip uninstall -y {' '.join(both)} && {install_command(last)}    # or {' or '.join(map(install_command, others))}",
            )


def engine_findings(version_of: InstalledVersion = installed_version) -> Iterator[Finding]:
    """A finding for each engine of another package, and for each that could not be registered."""
    for name, reason in broken().items():
        yield Finding(name=f"engine {name}", state="wrong", found=reason, meaning="another package offers it and it cannot be used")
    for engine in engines().values():
        if engine.extra or engine.variant_of:
            continue
        if missing := engine.missing():
            found = f"without {', '.join(missing)}"
            yield Finding(name=f"engine {engine.name}", state="absent", found=found, meaning=engine.purpose, mend=engine.install)
        else:
            versions = [f"{name} {version}" for name in engine.distributions if (version := version_of(name))]
            yield Finding(name=f"engine {engine.name}", state="ok", found=", ".join(versions) or "installed", meaning=engine.purpose)
