"""Names and links that lead out of an artefact's folder, in manifests and in graphs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dq_deploy.artifacts import Artifact
from tests.attacks.hostile import change_graph, change_manifest, copy_of, set_entry
from tests.command_line import Cli, assert_refused
from tests.tiny import resealed

NAMES = {
    "../secret": "leaves the folder",
    "a/../../secret": "leaves the folder",
    "..": "leaves the folder",
    "..\\secret": "leaves the folder",
    "a\\..\\..\\secret": "leaves the folder",
    "/etc/hostname": "is absolute",
    "//server/share/secret": "is absolute",
    "\\\\server\\share": "is absolute",
    "C:\\secret": "is absolute",
    "C:secret": "is absolute",
    "./model.onnx.data": "is not a plain file name",
    "a//b": "is not a plain file name",
    "model.onnx.data/": "is not a plain file name",
    "": "is not a plain file name",
    "model.onnx.data\n": "is not a plain file name",
    "nul\0byte": "is not a plain file name",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_manifest(cli: Cli, outside_bundle: Artifact, outside: Path, nothing_runs: None, tmp_path: Path, name: str) -> None:
    bundle = copy_of(outside_bundle, tmp_path / "bundle")
    change_manifest(bundle, lambda m: m["files"].update({name: {"sha256": "0" * 64, "size": 1}}))
    assert_refused(cli("inspect", bundle), 3, NAMES[name], "hint: ")
    assert_refused(cli("bench", bundle), 3, NAMES[name], "hint: ")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "command", [("bench", "--engine", "onnxruntime"), ("bench", "--engine", "openvino"), ("build-engine",)], ids="-".join
)
def test_names_in_a_graph(
    cli: Cli, outside_bundle: Artifact, outside: Path, nothing_runs: None, tmp_path: Path, name: str, command: tuple[str, ...]
) -> None:
    bundle = change_graph(copy_of(outside_bundle, tmp_path / "bundle"), set_entry("location", name))
    more = ("-o", tmp_path / "engine", "--backend", "openvino") if command[0] == "build-engine" else ()
    assert_refused(cli(command[0], bundle, *command[1:], *more), 3, "names data that must not be read", NAMES[name], "hint: ")
    assert not (tmp_path / "engine").exists()


def linked_file(bundle: Path, secret: Path) -> None:
    (bundle / "model.onnx.data").unlink()
    (bundle / "model.onnx.data").symlink_to(os.path.relpath(secret, bundle))


def linked_absolutely(bundle: Path, secret: Path) -> None:
    (bundle / "model.onnx.data").unlink()
    (bundle / "model.onnx.data").symlink_to(secret)


def linked_twice(bundle: Path, secret: Path) -> None:
    (bundle / "between").symlink_to(secret)
    (bundle / "model.onnx.data").unlink()
    (bundle / "model.onnx.data").symlink_to("between")


def linked_graph(bundle: Path, secret: Path) -> None:
    (bundle / "model.onnx").rename(secret.with_name("elsewhere.onnx"))
    (bundle / "model.onnx").symlink_to(secret.with_name("elsewhere.onnx"))


def linked_to_itself(bundle: Path, _: Path) -> None:
    (bundle / "model.onnx.data").unlink()
    (bundle / "model.onnx.data").symlink_to("model.onnx.data")


def device(bundle: Path, _: Path) -> None:
    (bundle / "model.onnx.data").unlink()
    (bundle / "model.onnx.data").symlink_to("/dev/zero")


def pipe(bundle: Path, _: Path) -> None:
    (bundle / "model.onnx.data").unlink()
    os.mkfifo(bundle / "model.onnx.data")


def folder(bundle: Path, _: Path) -> None:
    (bundle / "model.onnx.data").unlink()
    (bundle / "model.onnx.data").mkdir()


LINKS: dict[Callable[[Path, Path], None], str] = {
    linked_file: "leaves the folder through a link",
    linked_absolutely: "leaves the folder through a link",
    linked_twice: "leaves the folder through a link",
    linked_graph: "leaves the folder through a link",
    linked_to_itself: "cannot be followed to a file",
    device: "leaves the folder through a link",
    pipe: "is not a regular file",
    folder: "is not a regular file",
}


@pytest.mark.parametrize("attack", LINKS, ids=lambda attack: attack.__name__)
def test_links_out_of_the_folder(
    cli: Cli, outside_bundle: Artifact, outside: Path, nothing_runs: None, tmp_path: Path, attack: Callable[[Path, Path], None]
) -> None:
    """Also where the manifest vouches for the very bytes behind the link: an attacker may know them."""
    bundle = copy_of(outside_bundle, tmp_path / "bundle")
    attack(bundle, outside)
    if attack in (linked_file, linked_absolutely, linked_twice, linked_graph):
        resealed(bundle)
    for arguments in (("inspect", bundle), ("bench", bundle), ("build-engine", bundle, "-o", tmp_path / "e", "--backend", "tensorrt-rtx")):
        assert_refused(cli(*arguments), 3, "does not match its manifest", LINKS[attack], "hint: ")


def test_a_parent_that_is_a_link(cli: Cli, outside_bundle: Artifact, outside: Path, nothing_runs: None, tmp_path: Path) -> None:
    bundle = copy_of(outside_bundle, tmp_path / "bundle")
    (bundle / "sub").symlink_to(outside.parent)
    change_manifest(bundle, lambda m: m["files"].update({"sub/secret": {"sha256": "0" * 64, "size": 1 << 20}}))
    resealed(bundle)
    assert_refused(cli("inspect", bundle), 3, "'sub/secret' leaves the folder through a link", "hint: ")


def test_a_manifest_that_is_a_link(cli: Cli, outside_bundle: Artifact, tmp_path: Path) -> None:
    bundle = copy_of(outside_bundle, tmp_path / "bundle")
    (bundle / "manifest.json").rename(tmp_path / "m.json")
    (bundle / "manifest.json").symlink_to("../m.json")
    assert_refused(cli("inspect", bundle), 3, "its manifest.json leaves the folder through a link", "hint: ")


def test_hard_links(cli: Cli, outside_bundle: Artifact, outside: Path, nothing_runs: None, tmp_path: Path) -> None:
    """Also to bytes that the manifest vouches for; the parsers of ONNX Runtime and OpenVINO would read them."""
    bundle = copy_of(outside_bundle, tmp_path / "bundle")
    (bundle / "model.onnx.data").unlink()
    os.link(outside, bundle / "model.onnx.data")
    assert_refused(cli("bench", bundle), 3, "does not match its manifest")
    resealed(bundle)
    for arguments in (("bench", bundle), ("build-engine", bundle, "-o", tmp_path / "e", "--backend", "tensorrt-rtx")):
        assert_refused(cli(*arguments), 3, "'model.onnx.data' is a hard link, which may be to any file: copy it", "hint: ")
    linted = cli("check", bundle, "--lint", "--format", "json")
    assert linted.code == 3
    assert "is a hard link" in linted.out


def test_links_that_stay_in_the_folder_are_followed(cli: Cli, outside_bundle: Artifact, tmp_path: Path) -> None:
    bundle = copy_of(outside_bundle, tmp_path / "bundle")
    (bundle / "model.onnx.data").rename(bundle / "weights")
    (bundle / "model.onnx.data").symlink_to("weights")
    assert cli("inspect", bundle).code == 0
    (tmp_path / "by-another-name").symlink_to(bundle)
    assert cli("inspect", tmp_path / "by-another-name").code == 0


def test_files_that_are_not_listed_are_never_read(cli: Cli, outside_bundle: Artifact, nothing_runs: None, tmp_path: Path) -> None:
    bundle = copy_of(outside_bundle, tmp_path / "bundle")
    (bundle / "unlisted.data").write_bytes((bundle / "model.onnx.data").read_bytes())
    (bundle / "payload.py").write_text("raise SystemExit('ran')")
    assert cli("inspect", bundle).code == 0
    change_graph(bundle, set_entry("location", "unlisted.data"))
    assert_refused(cli("bench", bundle), 3, "'unlisted.data' is not among the files that the manifest lists", "hint: ")


def unlist(manifest: dict[str, Any]) -> None:
    del manifest["files"]["model.onnx"]


def test_a_graph_that_the_manifest_does_not_list(cli: Cli, outside_bundle: Artifact, nothing_runs: None, tmp_path: Path) -> None:
    bundle = change_manifest(copy_of(outside_bundle, tmp_path / "bundle"), unlist)
    assert_refused(cli("bench", bundle), 3, "the manifest lists no file 'model.onnx'")
