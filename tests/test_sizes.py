"""One bundle for several sizes, from quantize to pictures."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from diffusers import StableDiffusionPipeline

from dq_deploy.accuracy import check
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.details import BundleDetails, EngineDetails
from dq_deploy.engines.bench import contenders_from
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.engines.build.profiles import size_ranges
from dq_deploy.engines.dropin import load
from dq_deploy.engines.loading.engine_files import rebuild_hint
from dq_deploy.engines.loading.size_range import SizeRange
from dq_deploy.engines.schedules.combine import check_alike, combine
from dq_deploy.engines.triton import triton_repository
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization.checkpoint import load_checkpoint
from dq_deploy.quantization.refit import _calibrated
from tests.command_line import Cli
from tests.sized import BETWEEN, SIZES, Sized


def test_the_manifests_have_the_sizes(sized: Sized) -> None:
    for folder in (sized.checkpoint, sized.qdq, sized.onnxruntime):
        details = open_artifact(folder, ("checkpoint", "bundle")).details
        assert [(size.size, size.calibrated) for size in details.calibrated_sizes] == [*((size, True) for size in SIZES), (BETWEEN, False)]
        assert {name: (free.range, free.multiple) for name, free in details.free.items()} == {
            "height": ((8, 8, 16), 2),
            "width": ((8, 8, 16), 2),
        }


def test_each_size_has_its_share_of_the_samples_and_an_error_of_its_own(sized: Sized) -> None:
    checkpoint = load_checkpoint(sized.checkpoint)
    shapes = [tuple(data.samples.shape[1:]) for data in checkpoint.reference().by_size]
    assert shapes == [(8, 4, height // 2, width // 2) for height, width in (*SIZES, BETWEEN)]
    for size in checkpoint.details.calibrated_sizes:
        assert len(size.snr_db) == len(checkpoint.timesteps)
        assert min(size.snr_db) > 15


@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
def test_inputs_are_free_and_named(sized: Sized, target: str) -> None:
    bundle = open_artifact(getattr(sized, target), "bundle")
    assert {entry.name: entry.shape for entry in bundle.details.inputs}["sample"] == ["batch", 4, "height", "width"]
    graph = onnx.load(bundle.path / "model.onnx", load_external_data=False).graph
    assert [d.dim_param or d.dim_value for d in graph.output[0].type.tensor_type.shape.dim] == ["batch", 4, "height", "width"]


@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
def test_check_judges_every_size_and_one_between(sized: Sized, target: str) -> None:
    result = check(getattr(sized, target), sized.checkpoint, engines=["openvino"] if target == "qdq" else [])
    assert result, result.failures
    assert result.size == "16x16"
    assert [(at.size, at.calibrated) for at in result.sizes] == [("24x16", True), ("32x32", True), ("24x24", False)]
    assert all(at.layers == len(result.layers) for at in result.sizes)
    assert all(set(at.timesteps) == ({"", "openvino"} if target == "qdq" else {""}) for at in result.sizes)


def test_a_refit_rounds_by_no_sample_of_the_size_between(sized: Sized) -> None:
    checkpoint = load_checkpoint(sized.checkpoint)
    fitted = _calibrated(checkpoint.reference(), checkpoint)
    assert [tuple(data.samples.shape[-2:]) for data in fitted.by_size] == [(8, 8), (12, 8), (16, 16)]


def test_check_fails_at_the_size_that_is_wrong(sized: Sized, monkeypatch: pytest.MonkeyPatch) -> None:
    from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner

    right = OnnxRuntimeRunner._infer
    monkeypatch.setattr(
        OnnxRuntimeRunner, "_infer", lambda self, feeds: right(self, feeds) * (2 if feeds["sample"].shape[2:] == (16, 16) else 1)
    )
    result = check(sized.qdq, sized.checkpoint, optimized=False)
    assert not result
    assert all(line.startswith("32x32: timestep") for line in result.failures)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_one_bundle_draws_at_three_sizes_and_between(sized: Sized, runtime: str) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sized.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    network, quantized = pipeline.unet, load(sized.qdq, runtime=runtime)
    for height, width in (*SIZES, BETWEEN):
        drawn = []
        for pipeline.unet in (network, quantized):
            options = {"height": height, "width": width, "num_inference_steps": 4, "output_type": "latent"}
            drawn.append(pipeline(["a cat"], generator=torch.Generator().manual_seed(3), **options).images)
        expected, got = drawn
        assert got.shape == (1, 4, height // 2, width // 2)
        assert (got - expected).norm() < 0.2 * expected.norm()


def test_a_size_outside_says_which_command_widens_it(sized: Sized) -> None:
    model = load(sized.qdq, runtime="onnxruntime")
    text = torch.zeros(1, 8, 16)
    with pytest.raises(UsageError, match="the height of 'sample' is 20, and .* takes sizes from 8 to 16") as error:
        model(torch.zeros(1, 4, 20, 8), 1, encoder_hidden_states=text)
    assert "dq-deploy quantize SOURCE -o CHECKPOINT --sizes 16x16,24x16,32x32,40x16" in str(error.value.hint)
    with pytest.raises(UsageError, match="multiples of 2") as error:
        model(torch.zeros(1, 4, 8, 9), 1, encoder_hidden_states=text)
    assert error.value.hint == "the nearest are 8 and 10"


def test_an_engine_has_a_profile_over_the_sizes_and_keeps_int8(sized: Sized, tmp_path: Path) -> None:
    engine = build_engine(sized.qdq, tmp_path / "rtx", backend="tensorrt-rtx", compute_capabilities=["8.9"])
    assert engine.details.sizes == {"height": (8, 8, 16), "width": (8, 8, 16)}
    assert engine.manifest.details["profile"]["sample"] == [[1, 4, 8, 8], [2, 4, 8, 8], [8, 4, 16, 16]]
    (report,) = load_report(engine)
    summary = report.summary()
    assert summary["planned_layers"] > 20
    assert summary["as_planned"] == summary["planned_layers"]


def test_an_openvino_engine_serves_its_range(sized: Sized, tmp_path: Path) -> None:
    engine = build_engine(sized.qdq, tmp_path / "engine", backend="openvino", sizes={"height": (8, 12, 12), "width": (8, 8, 12)})
    result = check(engine, sized.checkpoint)
    assert result, result.failures
    assert [at.size for at in result.sizes] == ["24x16", "24x24"]  # 32x32 is outside
    with pytest.raises(UsageError, match="takes sizes from 8 to 12") as error:
        load(engine)(torch.zeros(1, 4, 16, 8), 1, encoder_hidden_states=torch.zeros(1, 8, 16))
    assert "--backend openvino --height 8,12,16" in str(error.value.hint)


def test_build_engine_refuses_sizes_that_the_network_does_not_take(sized: Sized, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="height in steps of 2, .*--height 8,9,16 has 9") as error:
        build_engine(sized.qdq, tmp_path / "engine", backend="openvino", sizes={"height": (8, 9, 16)})
    assert error.value.hint == "sizes are the input's own: latents, of 2 pixels each"
    assert not (tmp_path / "engine").exists()


def steered(sized: Sized) -> Artifact[BundleDetails]:
    """The bundle, as if it had a residual of half its latents' height."""
    bundle = open_artifact(sized.qdq, "bundle")
    follower = {"values": [4, 6, 8], "axes": [["residual", 2]], "multiple": 1, "of": "height", "ratio": [1, 2]}
    details = {**bundle.manifest.details, "free": {**bundle.manifest.details["free"], "residual_2": follower}}
    return Artifact(bundle.path, bundle.manifest.model_copy(update={"details": details}))


def test_a_dimension_that_follows_another_is_never_asked_for(sized: Sized) -> None:
    details = steered(sized).details
    expected = {"height": (8, 12, 12), "width": (8, 8, 16), "residual_2": (4, 6, 6)}
    assert size_ranges(details, {"height": (8, 12, 12)}) == expected
    with pytest.raises(UsageError, match="a range is given of residual_2, which follows the height"):
        size_ranges(details, {"residual_2": (4, 6, 6)})
    file = {"compute_capability": None, "file": "model.xml", "report": "layers.cpu.json"}
    built = {"backend": "openvino", "version": "1", "engines": [file], "batch": (1, 1, 1), "sizes": expected}
    engine = EngineDetails.model_validate({**details.model_dump(by_alias=True), **built})
    assert rebuild_hint(Path("engine"), engine).endswith("--batch 1,1,1 --height 8,12,12 --width 8,8,16 --force")


def test_what_follows_must_fit(sized: Sized) -> None:
    sizes, sample = SizeRange.of(steered(sized)), torch.zeros(1, 4, 12, 8)
    sizes.check({"sample": sample, "residual": torch.zeros(1, 8, 6, 4)})
    with pytest.raises(UsageError, match="dimension 2 of 'residual' is 5, and beside a height of 12 it is 6"):
        sizes.check({"sample": sample, "residual": torch.zeros(1, 8, 5, 4)})


@pytest.fixture(scope="module")
def float_bundle(sized: Sized, tmp_path_factory: pytest.TempPathFactory) -> Artifact[BundleDetails]:
    return export(sized.checkpoint, tmp_path_factory.mktemp("float") / "bundle", target="qdq", float=True)


def test_the_float_bundle_has_the_same_sizes(float_bundle: Artifact[BundleDetails]) -> None:
    assert float_bundle.details.inputs[0].shape == ["batch", 4, "height", "width"]
    inputs = {"encoder_hidden_states": torch.zeros(1, 8, 16)}
    assert load(float_bundle, runtime="onnxruntime")(torch.zeros(1, 4, 16, 8), 1, **inputs).sample.shape == (1, 4, 16, 8)


def test_a_schedule_is_judged_at_every_size(sized: Sized, float_bundle: Artifact[BundleDetails], tmp_path: Path) -> None:
    schedule = combine([float_bundle, sized.qdq], tmp_path / "schedule", switches=[500])
    result = check(schedule, sized.checkpoint, optimized=False)
    assert result, result.failures
    assert (result.size, [(at.size, at.calibrated) for at in result.sizes]) == (
        "16x16",
        [("24x16", True), ("32x32", True), ("24x24", False)],
    )
    assert all(at.layers == len(result.layers) for at in result.sizes)
    assert [row.member for row in result.sizes[1].timesteps[""]] == [row.member for row in result.timesteps]
    with pytest.raises(UsageError, match="takes sizes from 8 to 16") as error:
        load(schedule, runtime="onnxruntime")(torch.zeros(1, 4, 20, 8), 1, encoder_hidden_states=torch.zeros(1, 8, 16))
    assert "--sizes 16x16,24x16,32x32,40x16" in str(error.value.hint)


def test_members_of_a_schedule_have_the_same_sizes(sized: Sized) -> None:
    bundle = open_artifact(sized.qdq, "bundle")
    free = {name: {**size, "values": [8, 8, 12]} for name, size in bundle.manifest.details["free"].items()}
    sizes = [{**size, "size": [20, 20]} for size in bundle.manifest.details["calibrated_sizes"][:1]]
    details = {**bundle.manifest.details, "free": free, "calibrated_sizes": sizes}
    other = Artifact(bundle.path, bundle.manifest.model_copy(update={"details": details}))
    told = "sizes 20x20, not 16x16, 24x16, 32x32; .*: range height 8 to 12, width 8 to 12, not height 8 to 16, width 8 to 16"
    with pytest.raises(ArtifactError, match=told):
        check_alike([bundle, other])


def test_bench_times_a_size(sized: Sized) -> None:
    (contender,) = contenders_from([sized.qdq], engines=["onnxruntime"], sizes={"height": 12})
    assert contender.inputs(1)[0]["sample"].shape == (1, 4, 12, 8)
    with pytest.raises(
        UsageError, match=r"the height of 'sample' is 9, and the network takes multiples of 2 \(latents, of 2 pixels each\)"
    ):
        contenders_from([sized.qdq], engines=["onnxruntime"], sizes={"height": 9})
    with pytest.raises(UsageError, match="the height of 'sample' is 20, and .* takes sizes from 8 to 16"):
        contenders_from([sized.qdq], engines=["onnxruntime"], sizes={"height": 20})
    with pytest.raises(UsageError, match="a tokens is given, which is free in none"):
        contenders_from([sized.qdq], engines=["onnxruntime"], sizes={"tokens": 12})


def test_triton_has_free_dimensions_and_warms_up_at_a_calibrated_size(sized: Sized, tmp_path: Path) -> None:
    triton_repository(sized.qdq, tmp_path / "models", name="unet")
    config = (tmp_path / "models/unet/config.pbtxt").read_text()
    assert "dims: [ 4, -1, -1 ]" in config
    assert "dims: [ 4, 8, 8 ]" in config


def test_inspect_shows_the_sizes(sized: Sized, cli: Cli) -> None:
    output = cli("inspect", sized.qdq).out
    assert "8 to 16, usually 8, in steps of 2 (latents, of 2 pixels each)" in output
    shown = json.loads(cli("inspect", sized.checkpoint, "--format", "json").out)
    assert [size["size"] for size in shown["details"]["calibrated_sizes"]] == [[16, 16], [24, 16], [32, 32], [24, 24]]


def test_sample_draws_at_a_size(sized: Sized, cli: Cli, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    arguments = ["sample", sized.qdq, "-o", tmp_path / "a.png", "-n", 1, "--steps", 2, "--prompts", prompts, "--height", 24, "--width", 32]
    result = json.loads(cli(*arguments, "--format", "json").out)
    assert result["psnr_mean_db"] > 15
