"""Several optimization profiles of one engine: what they may be, what is built, and which one a run takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.build.profiles import envelope, in_words, nearest, parse_profile
from dq_deploy.engines.loading.engine_files import largest_batch, rebuild_hint
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.engines.tensorrt.runner import TensorRtRunner
from dq_deploy.engines.triton import triton_repository
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.report.recipe import commands
from tests.command_line import Cli, assert_refused
from tests.engines import graphs
from tests.engines.tensorrt.fake import HostDevice, engine_of, install

SMALL = {"batch": (1, 2, 4), "height": (8, 8, 16), "width": (8, 8, 16)}
LARGE = {"batch": (1, 1, 1), "height": (16, 32, 32), "width": (16, 32, 32)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return graphs.any_size(tmp_path_factory.mktemp("bundle") / "bundle")


def test_what_is_typed() -> None:
    assert parse_profile("batch=1,2,2  picture-tokens=64,64,96") == {"batch": (1, 2, 2), "picture_tokens": (64, 64, 96)}
    assert parse_profile(in_words(LARGE)) == LARGE
    for text in ("", "batch", "batch=1,2", "batch=1,2,x", "batch=1,1,1 batch=2,2,2"):
        with pytest.raises(UsageError, match="--profile.*\nsuch as --profile"):
            parse_profile(text)


def test_the_nearest_that_takes_it() -> None:
    profiles = [SMALL, LARGE]
    assert envelope(profiles) == {"batch": (1, 2, 4), "height": (8, 8, 32), "width": (8, 8, 32)}
    assert nearest(profiles, {"batch": 4, "height": 8, "width": 16}) == 0
    assert nearest(profiles, {"batch": 1, "height": 32, "width": 24}) == 1
    assert nearest(profiles, {"batch": 1, "height": 16, "width": 16}) == 1  # within both, and the batch is what the second is tuned for
    assert nearest(profiles, {"batch": 2, "height": 32, "width": 32}) is None
    assert nearest(profiles, {"height": 8, "width": 32}) is None  # between them


@pytest.fixture(scope="module")
def built(bundle: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("engine") / "engine"
    return build_engine(bundle, path, backend="tensorrt-rtx", compute_capabilities=["8.9"], profiles=[SMALL, LARGE])


def test_an_engine_of_two_profiles(built: Artifact, bundle: Artifact, tmp_path: Path, cli: Cli) -> None:
    details = built.details
    assert details.profiles == [SMALL, LARGE]
    assert (details.batch, details.sizes) == ((1, 2, 4), {"height": (8, 8, 32), "width": (8, 8, 32)})
    assert largest_batch(built) == 1
    (entry,) = details.engines
    (further,) = entry.further_profiles
    assert (further.as_planned, further.planned_layers) == (2, 2)
    alone = build_engine(
        bundle, tmp_path / "alone", backend="tensorrt-rtx", compute_capabilities=["8.9"], batch=SMALL["batch"],
        sizes={"height": SMALL["height"], "width": SMALL["width"]},
    )  # fmt: skip
    own, other = (one.manifest.details["engines"][0] for one in (built, alone))
    assert (own["kernels"], own["as_planned"]) == (other["kernels"], other["as_planned"])  # the first profile's alone
    words = "--profile 'batch=1,2,4 height=8,8,16 width=8,8,16' --profile 'batch=1,1,1 height=16,32,32 width=16,32,32'"
    assert words in rebuild_hint(built.path, details)
    assert words in commands(built)[0]
    assert "--batch" not in commands(built)[0]
    assert "batch=1,1,1 height=16,32,32 width=16,32,32" in cli("inspect", built.path).out
    assert f"profile 2 for 8.9: {further.kernels} kernels, 2 of 2 layers as planned" in cli("layers", built.path).err
    with pytest.raises(ArtifactError, match="has 2 profiles, and Triton takes an engine's first alone"):
        triton_repository(built, tmp_path / "repository")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--backend", "openvino"], ("an engine of OpenVINO has no profiles", "leave --profile out")),
        (["--profile", "batch=1,1,1 height=8,8,16 width=8,8,16"], ("two profiles are the same",)),
        (["--profile", "depth=1,2,3"], ("the graph has no dynamic dimension depth",)),
        (["--profile", "height=9,8,16 width=8,8,16"], ("not a range: height (9, 8, 16)",)),
    ],
)
def test_profiles_that_are_refused(flags: list[str], told: tuple[str, ...], bundle: Artifact, tmp_path: Path, cli: Cli) -> None:
    given = [] if "--backend" in flags else ["--backend", "tensorrt-rtx"]
    first = ["--batch", "1,1,1", "--height", "8,8,16", "--width", "8,8,16", "--profile", "batch=1,1,1"]
    assert_refused(cli("build-engine", bundle.path, "-o", tmp_path / "out", *given, *first, *flags), 2, *told)


def noise(batch: int, height: int, width: int) -> dict[str, Any]:
    sample = np.random.default_rng(batch).standard_normal((batch, 8, height, width)).astype(np.float32)
    return {"sample": sample, "timestep": np.zeros(batch, np.float32)}


@pytest.mark.parametrize("graphs_on", [False, True])
def test_a_run_takes_the_nearest_profile(bundle: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs_on: bool) -> None:
    trt = install(monkeypatch)
    sizes = {"height": [8, 8, 32], "width": [8, 8, 32]}
    engine = engine_of(bundle, tmp_path / "engine", profiles=[SMALL, LARGE], batch=[1, 2, 4], sizes=sizes)
    runner = TensorRtRunner(engine, cuda_graphs=graphs_on, device=HostDevice())  # type: ignore[arg-type]
    reference = OnnxRuntimeRunner(bundle, optimized=False)
    seen = []
    for shape in ((4, 8, 8), (1, 32, 32), (2, 16, 8), (1, 32, 32)):
        before = len(trt.calls)
        np.testing.assert_allclose(runner.run(noise(*shape)), reference.run(noise(*shape)), rtol=1e-4, atol=1e-4)
        seen.append([call for call in trt.calls[before:] if call.startswith("profile")])
    to_large, to_small = ["profile 1 on stream 7"], ["profile 0 on stream 7"]
    # A graph's context keeps its profile; the one context of all shapes goes from one to the other.
    assert seen == ([[], to_large, [], []] if graphs_on else [[], to_large, to_small, to_large])
    with pytest.raises(UsageError, match=r"batch 2 and height 32 and width 32 lies in none of the 2 profiles.*\n.*--profile .batch=2,2,2"):
        runner.run(noise(2, 32, 32))
    with pytest.raises(UsageError, match="the engine was built for"):
        runner.run(noise(1, 40, 40))
