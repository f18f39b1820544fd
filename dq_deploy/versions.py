"""Versions of what is installed, and what installs the rest."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "dq-deploy"


def installed_version(name: str) -> str | None:
    """Version of a distribution, None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> list[Requirement]:
    """What this dq-deploy asks for: from its installation, or from pyproject.toml beside a checkout that is not installed."""
    import tomllib

    from packaging.requirements import Requirement

    if installed_version(DISTRIBUTION):
        return [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    project = Path(__file__).parents[1] / "pyproject.toml"
    if not project.is_file():
        return []
    table = tomllib.loads(project.read_text())["project"]
    found = [Requirement(line) for line in table["dependencies"]]
    for extra, lines in table["optional-dependencies"].items():
        found += [Requirement(f'{line} ; extra == "{extra}"') for line in lines]
    return found


def of_extra(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement belongs to an extra, and not to everybody."""
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def install_command(extra: str) -> str:
    """What installs an extra's packages by their names: no index has dq-deploy itself, and whoever has its wheel has no clone."""
    return installing(requirement for requirement in requirements() if of_extra(requirement, extra))


def installing(requirements: Iterable[Requirement]) -> str:
    """The command that installs these."""
    return " ".join(["pip install", *(f'"{requirement.name}{requirement.specifier}"' for requirement in requirements)])
