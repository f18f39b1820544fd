"""What is installed is pinned, by version and by hash, and names no place that it comes from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"torch"}  # another file on every index: see docs/security.md
NOT_HERE = {"onnxruntime-gpu", "tensorrt"}  # their extras are never installed by `make`


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    return {canonicalize_name(name): version for name, version in found.items()}


def hashed() -> dict[str, tuple[str, list[str]]]:
    """Name → version and hashes; nothing but pins, hashes and comments may stand in the file."""
    found: dict[str, tuple[str, list[str]]] = {}
    for line in (ROOT / "requirements-hashed.txt").read_text().splitlines():
        if match := re.fullmatch(r"([a-z0-9-]+)==(\S+) \\", line):
            hashes: list[str] = []
            found[match[1]] = (match[2], hashes)
        elif match := re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})( \\)?", line):
            hashes.append(match[1])
        else:
            assert re.fullmatch(r"#[^:]*:?|#    uv pip compile .*", line), line
    return found


def test_every_pin_has_hashes_and_no_other_package_has() -> None:
    assert {name: version for name, (version, _) in hashed().items()} == {n: v for n, v in pins().items() if n not in ELSEWHERE}, (
        "make pins"
    )
    assert all(hashes for _, hashes in hashed().values())


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for group in (project["dependencies"], *project["optional-dependencies"].values()) for text in group]
    versions = pins()
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name not in NOT_HERE:
            assert name in versions, f"{name} is not in constraints.txt"
            assert requirement.specifier.contains(versions[name]), (
                f"{name} {versions[name]} is outside of its own range {requirement.specifier}"
            )


def test_nothing_says_where_packages_come_from() -> None:
    for name in ("requirements-hashed.txt", "constraints.txt", "Makefile"):
        assert not re.search(r"https?://|file://|--(extra-)?index-url|--find-links", (ROOT / name).read_text()), name
