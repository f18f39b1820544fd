"""Any manifest that can be made is read back as it was, from the same bytes on every machine."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dq_deploy.artifacts import Artifact, Manifest
from dq_deploy.artifacts.manifest import FileEntry, parse_manifest

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)
HASH = st.text("0123456789abcdef", min_size=64, max_size=64)
ENTRIES = st.builds(FileEntry, sha256=HASH, size=st.integers(0, 2**50))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    details=st.dictionaries(TEXT, VALUES, max_size=4),
    timesteps=st.lists(st.floats(-1e6, 1e6), unique=True, max_size=5).map(sorted),
    files=st.dictionaries(TEXT, ENTRIES, max_size=3),
)
def test_round_trip(tmp_path: Path, details: dict[str, object], timesteps: list[float], files: dict[str, FileEntry]) -> None:
    manifest = Manifest(kind="bundle", model="m", details=details, timesteps=timesteps, files=files)
    path = tmp_path / "manifest.json"
    path.write_text(manifest.to_json())
    found = parse_manifest(path)
    assert found == manifest
    assert found.to_json() == manifest.to_json()
    assert json.loads(manifest.to_json())["timesteps"] == timesteps


def test_an_artefact_prints_as_one_line(tmp_path: Path) -> None:
    manifest = Manifest(kind="checkpoint", model="a\nb", details={"layers": ["x"] * 100})
    assert repr(Artifact(tmp_path / "c", manifest)) == f"<checkpoint of 'a\\nb' in '{tmp_path / 'c'}'>"
