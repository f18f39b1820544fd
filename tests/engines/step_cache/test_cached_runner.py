"""Bundles in three parts: the same numbers where nothing is skipped, and what is defined where something is."""

from __future__ import annotations

import gc
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline

import dq_deploy
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.engines.descriptors.registry import engines
from dq_deploy.engines.loading.choice import make_cached_runner, make_runner
from dq_deploy.engines.schedules.combine import combine
from dq_deploy.engines.step_cache.runner import CachedRunner
from dq_deploy.errors import UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from tests.command_line import Cli, assert_refused
from tests.flow import Flow, small_unet, snapshot
from tests.tiny import FAST, snr_db
from tests.tiny_pipelines import tiny_dit

ALWAYS = 1e9
"""A threshold below which everything stays, but for the first and the last step."""
Feeds = dict[str, Any]


def transformer() -> Any:
    return tiny_dit(num_layers=3)


@pytest.fixture(scope="module")
def dits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """W8A8 and float of a class-conditional transformer of three blocks; four timesteps."""
    root = tmp_path_factory.mktemp("dits")
    model = transformer()
    model.save_pretrained(root / "pipeline/transformer")
    DDIMScheduler().save_pretrained(root / "pipeline/scheduler")
    DiTPipeline(model, None, DDIMScheduler()).save_config(root / "pipeline")
    checkpoint = quantize(root / "pipeline", root / "checkpoint", **FAST, final_samples=0)
    return {
        "qdq": export(checkpoint, root / "qdq", target="qdq", dtype="fp32"),
        "float": export(checkpoint, root / "float", target="qdq", float=True),
    }


def inputs(bundle: Artifact, timestep: float, *, seed: int = 0, batch: int = 2) -> Feeds:
    """A batch, whose conditions do not depend on the seed."""
    fixed, noise = np.random.default_rng(9), np.random.default_rng(seed)
    found: Feeds = {}
    for place, entry in enumerate(bundle.details.inputs):
        shape = (batch, *(int(size) for size in entry.shape[1:]))
        if entry.name == "timestep":
            found["timestep"] = timestep
        elif entry.dtype and entry.dtype.startswith("int"):
            found[entry.name] = fixed.integers(0, 4, size=shape)
        else:
            found[entry.name] = (noise if place == 0 else fixed).normal(size=shape).astype(np.float32)
    return found


def falling(bundle: Artifact) -> list[float]:
    return sorted(bundle.manifest.timesteps, reverse=True)


@pytest.mark.parametrize("name", ["qdq", "float"])
def test_nothing_skipped_is_the_whole_transformer(dits: dict[str, Artifact], name: str) -> None:
    same_as_the_whole(dits[name])


@pytest.mark.parametrize("name", ["qdq", "onnxruntime"])
def test_nothing_skipped_is_the_whole_unet(flow: Flow, name: str) -> None:
    """In the target of ONNX Runtime a graph takes one timestep at a time."""
    same_as_the_whole(flow.bundle(name))


def same_as_the_whole(bundle: Artifact) -> None:
    """Bit for bit where nothing is fused; else a sum's last bits differ beside a cut, and may flip codes behind it."""
    for runtime, options in (("onnxruntime", {"optimized": False}), ("openvino", {})):
        whole, parts = make_runner(bundle, runtime=runtime, **options), make_cached_runner(bundle, 0.0, runtime=runtime, **options)
        for seed, timestep in enumerate(falling(bundle)[:3]):
            feeds = inputs(bundle, timestep, seed=seed)
            got, expected = parts.run(feeds), whole.run(feeds)
            if options:
                np.testing.assert_array_equal(got, expected)
            else:
                assert snr_db(torch.from_numpy(expected), torch.from_numpy(got)) > 35
        report = parts.report()
        assert (report.calls, report.skipped, report.saved_work) == (3, 0, 0 if bundle.details.layers else None)


def given(values: dict[str, torch.Tensor], name: str, module: torch.nn.Module, change: Callable[[Any], Any] | None = None) -> Any:
    """Keep what a module gives under ``name``; with ``change`` it gives another thing."""

    def hook(_: torch.nn.Module, __: Any, output: Any) -> Any:
        values[name] = output
        return change(output) if change else None

    return module.register_forward_hook(hook)


@torch.no_grad()
def test_a_skipped_step_of_a_transformer_is_the_first_block_and_what_the_others_added(dits: dict[str, Artifact]) -> None:
    """By hand in PyTorch: h₁ now + (h_N − h₁) of the step before, through the last layers."""
    model, bundle = transformer(), dits["float"]
    runner = make_cached_runner(bundle, ALWAYS, runtime="onnxruntime")
    before, now = (inputs(bundle, timestep, seed=seed) for seed, timestep in enumerate(falling(bundle)[:2]))

    def call(feeds: Feeds) -> np.ndarray[Any, Any]:
        arguments = [torch.as_tensor(feeds[name]) for name in ("hidden_states", "class_labels")]
        time = torch.full((2,), float(feeds["timestep"]))
        return model(arguments[0], timestep=time, class_labels=arguments[1], return_dict=False)[0].numpy()

    seen: dict[str, torch.Tensor] = {}
    first, last = (given(seen, name, model.transformer_blocks[place]) for name, place in (("first", 0), ("last", -1)))
    np.testing.assert_allclose(runner.run(before), call(before), atol=1e-4)
    added = seen["last"] - seen["first"]
    last.remove()
    given(seen, "last", model.transformer_blocks[-1], lambda _: seen["first"] + added)
    skipped = runner.run(now)
    assert runner.report().skipped == 1
    np.testing.assert_allclose(skipped, call(now), atol=1e-4)
    first.remove()
    assert np.abs(skipped - make_runner(bundle, runtime="onnxruntime").run(now)).max() > 1e-3


@torch.no_grad()
def test_a_skipped_step_of_a_unet_takes_the_deep_part_as_it_was(flow: Flow) -> None:
    model, bundle = small_unet(), flow.bundle("float")
    runner = make_cached_runner(bundle, ALWAYS, runtime="onnxruntime")
    assert runner.details["cache"] == {"threshold": ALWAYS, "behind": "down_blocks.0", "before": "up_blocks.0, layer 1", "residual": False}
    before, now = (inputs(bundle, timestep, seed=seed) for seed, timestep in enumerate(falling(bundle)[:2]))
    seen: dict[str, torch.Tensor] = {}
    deep = model.up_blocks[-1].resnets[-2]
    hook = given(seen, "deep", deep)
    for feeds, expected in ((before, None), (now, seen)):
        if expected is not None:
            hook.remove()
            kept = seen["deep"]
            given(seen, "deep", deep, lambda _, kept=kept: kept)
        output = model(torch.from_numpy(feeds["sample"]), torch.full((2,), feeds["timestep"])).sample
        np.testing.assert_allclose(runner.run(feeds), output.numpy(), atol=1e-4)
    assert runner.report().skipped == 1


def test_the_first_and_the_last_step_run_in_full_and_each_run_begins_anew(dits: dict[str, Artifact]) -> None:
    bundle = dits["qdq"]
    runner = make_cached_runner(bundle, ALWAYS)
    for run in (1, 2):
        for timestep in falling(bundle):
            runner.run(inputs(bundle, timestep))
        assert (runner.report().calls, runner.report().skipped) == (4 * run, 2 * run)
    work = runner.report().body_work
    assert work is not None
    assert 0.4 < work < 0.7  # two of three blocks
    assert runner.report().saved_work == pytest.approx(work / 2)


def test_other_conditions_and_batches_have_their_own(dits: dict[str, Artifact]) -> None:
    bundle = dits["qdq"]
    written = {"runtime": "onnxruntime", "optimized": False}
    runner, whole = make_cached_runner(bundle, ALWAYS, **written), make_runner(bundle, **written)
    high, middle, *_ = falling(bundle)
    runner.run(inputs(bundle, high))
    for feeds in (inputs(bundle, middle, batch=3), inputs(bundle, middle) | {"class_labels": np.array([4, 4])}):
        np.testing.assert_array_equal(runner.run(feeds), whole.run(feeds))  # as written
    assert runner.report().skipped == 0
    runner.run(inputs(bundle, middle))
    assert runner.report().skipped == 1


@pytest.mark.parametrize("name", ["qdq", "onnxruntime"])
def test_a_batch_that_mixes_timesteps_runs_in_full(flow: Flow, name: str) -> None:
    bundle = flow.bundle(name)
    written = {"runtime": "onnxruntime", "optimized": False}
    runner, whole = make_cached_runner(bundle, ALWAYS, **written), make_runner(bundle, **written)
    high, middle, low, *_ = falling(bundle)
    runner.run(inputs(bundle, high, batch=2))
    mixed = inputs(bundle, 0.0, batch=4) | {"timestep": np.array([middle, low, middle, low])}
    np.testing.assert_allclose(runner.run(mixed), whole.run(mixed), atol=1e-5)
    runner.run(inputs(bundle, low, batch=2))
    assert runner.report().skipped == 0


def test_threads_have_a_run_each(dits: dict[str, Artifact]) -> None:
    bundle = dits["qdq"]
    runner = make_cached_runner(bundle, ALWAYS, runtime="onnxruntime", threads=1)
    alone = [runner.run(inputs(bundle, t)) for t in falling(bundle)]
    found: dict[int, list[Any]] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: [runner.run(inputs(bundle, t)) for t in falling(bundle)]})) for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (runner.report().calls, runner.report().skipped) == (16, 8)
    for outputs in found.values():
        np.testing.assert_allclose(outputs, alone, atol=1e-6)


def test_the_bundle_stays_as_it_was_and_nothing_is_left(dits: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = snapshot(dits["qdq"].path)
    runner = make_cached_runner(dits["qdq"], 0.1)
    assert len(list(tmp_path.iterdir())) == 1
    del runner
    gc.collect()
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="unknown runtime|no file|cannot be cut|threads is 0"):
        make_cached_runner(dits["qdq"], 0.1, runtime="onnxruntime", threads=0)
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert snapshot(dits["qdq"].path) == before


def test_the_drop_in(dits: dict[str, Artifact]) -> None:
    bundle = dits["qdq"]
    model = dq_deploy.load(bundle.path, cache=ALWAYS)
    for timestep in falling(bundle):
        feeds = inputs(bundle, timestep)
        model(torch.from_numpy(feeds["hidden_states"]), timestep, class_labels=torch.from_numpy(feeds["class_labels"]))
    assert (model.cached().calls, model.cached().skipped) == (4, 2)
    assert pickle.loads(pickle.dumps(model)).cached().calls == 0
    with pytest.raises(UsageError, match="keeps nothing from step to step") as caught:
        dq_deploy.load(bundle.path).cached()
    assert caught.value.hint is not None
    assert "cache=" in caught.value.hint


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf"), True, "0.1", None])
def test_no_threshold(dits: dict[str, Artifact], threshold: Any) -> None:
    with pytest.raises(UsageError, match="a cache threshold is a number of 0 or more, and"):
        make_cached_runner(dits["qdq"], threshold)


def test_what_is_not_cached(dits: dict[str, Artifact], flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = combine([flow.bundles["qdq"], flow.bundles["float"]], tmp_path / "schedule", switches=[400.0])
    golden = open_artifact(Path(__file__).parents[2] / "golden" / "schema-1" / "bundle", "bundle")
    for refused, message in (
        (lambda: dq_deploy.load(schedule, cache=0.1), "is a schedule, which is not cached across steps: what one of its members keeps"),
        (lambda: dq_deploy.load(golden, cache=0.1), "cannot be cut behind its first block: its products are named after no chain"),
        (lambda: dq_deploy.load(dits["qdq"], cache=0.1, watch=True), "either watched, node by node, or skips nodes"),
    ):
        with pytest.raises(UsageError, match=message):
            refused()
    assert not isinstance(make_runner(dits["qdq"]), CachedRunner)
    whole = engines()["onnxruntime"]
    monkeypatch.setitem(engines(), "onnxruntime", type(whole)(**{**vars(whole), "parts": False}))
    with pytest.raises(UsageError, match="onnxruntime does not run parts of a network"):
        make_cached_runner(dits["qdq"], 0.1, runtime="onnxruntime")


def test_sample(flow: Flow, cli: Cli, tmp_path: Path) -> None:
    drawn = cli("sample", flow.bundles["qdq"], "-o", tmp_path / "a.png", "-n", 2, "--cache", ALWAYS, "--format", "json")
    assert drawn.code == 0, drawn.err
    cached = json.loads(drawn.out)["cached"]
    assert (cached["calls"], cached["skipped"], cached["skipped_share"]) == (5, 3, 0.6)
    shown = cli("sample", flow.bundles["float"], "-o", tmp_path / "b.png", "-n", 1, "--cache", 0, "--no-compare-float")
    assert "0 of 5 steps (0%)" in shown.out
    for source, threshold, words in (
        (flow.checkpoint, 0.1, "is a checkpoint, which PyTorch runs whole"),
        (flow.bundles["qdq"], -1, "a cache threshold is a number of 0 or more, and -1.0 is given"),
    ):
        assert_refused(cli("sample", source, "-o", tmp_path / "c.png", "--cache", threshold), 2, words)
