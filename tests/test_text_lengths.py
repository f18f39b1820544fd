"""One bundle for several lengths of text, of a tiny FLUX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dq_deploy.accuracy import check
from dq_deploy.artifacts import Artifact
from dq_deploy.artifacts.details import BundleDetails, CheckpointDetails
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.dropin import load
from dq_deploy.errors import UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from dq_deploy.report.recipe import commands
from dq_deploy.sampling import Drawing, draw
from tests.command_line import Cli, assert_refused
from tests.text_encoder_pipelines import tiny_qwen_image, tiny_z_image_pipeline
from tests.tiny import FAST
from tests.tiny_pipelines import randomized, tiny_flux, tiny_stable_diffusion

PROMPTS = ["a cat", "two dogs"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact[CheckpointDetails]:
    """W8A8 of texts of 4 and 8 tokens."""
    root = tmp_path_factory.mktemp("texts")
    tiny_flux().save_pretrained(root / "pipeline")
    options = {**FAST, "steps": 2, "calibration_samples": 4, "dilation": "none", "final_samples": 0}
    return quantize(root / "pipeline", root / "checkpoint", prompts=PROMPTS, height=16, width=16, tokens=(4, 8), **options)


@pytest.fixture(scope="module")
def bundle(checkpoint: Artifact[CheckpointDetails]) -> Artifact[BundleDetails]:
    return export(checkpoint, checkpoint.path.parent / "bundle", target="qdq", dtype="fp32")


def test_the_text_is_free_and_check_judges_every_length(checkpoint: Artifact[Any], bundle: Artifact[BundleDetails]) -> None:
    assert list(map(str, bundle.details.calibrated_sizes)) == ["4 tokens", "8 tokens", "6 tokens"]
    free = bundle.details.free
    assert {name: (one.range, one.multiple) for name, one in free.items()} == {"tokens": ((4, 4, 8), 1)}
    assert sorted(name for name, _ in free["tokens"].axes) == ["encoder_hidden_states", "txt_ids"]
    result = check(bundle, checkpoint, optimized=False)
    assert result, result.failures
    assert (result.size, [(at.size, at.calibrated) for at in result.sizes]) == ("4 tokens", [("8 tokens", True), ("6 tokens", False)])
    assert " --height 16 --width 16" in commands(checkpoint)[-1]
    assert " --tokens 4,8 " in commands(checkpoint)[-1]


def test_the_drop_in_takes_any_length_between(bundle: Artifact[BundleDetails]) -> None:
    pipeline = tiny_flux()
    pipeline.set_progress_bar_config(disable=True)
    network, quantized = pipeline.transformer, load(bundle, runtime="onnxruntime")
    options = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent"}

    def drawn(model: Any, length: int) -> torch.Tensor:
        pipeline.transformer = model
        made: torch.Tensor = pipeline("a cat", generator=torch.Generator().manual_seed(3), max_sequence_length=length, **options).images
        return made

    for length in (4, 7, 8):
        expected, got = drawn(network, length), drawn(quantized, length)
        assert (got - expected).norm() < 0.2 * expected.norm()
    with pytest.raises(UsageError, match="the tokens of 'encoder_hidden_states' is 9, and .* takes sizes from 4 to 8") as error:
        drawn(quantized, 9)
    assert error.value.hint == "calibrate there too: dq-deploy quantize SOURCE -o CHECKPOINT --tokens 4,8,9"


def test_sample_draws_at_the_first_length(bundle: Artifact[BundleDetails]) -> None:
    assert bundle.details.picture_size["max_sequence_length"] == 4
    assert draw(bundle, Drawing(n=1, prompts=PROMPTS)).psnr_db


def test_an_engine_has_a_profile_over_the_lengths(bundle: Artifact[BundleDetails], tmp_path: Path) -> None:
    engine = build_engine(bundle, tmp_path / "rtx", backend="tensorrt-rtx", compute_capabilities=["8.9"], sizes={"tokens": (4, 6, 8)})
    assert engine.details.sizes == {"tokens": (4, 6, 8)}
    assert [shape[1] for shape in engine.manifest.details["profile"]["encoder_hidden_states"]] == [4, 6, 8]


@pytest.mark.parametrize("name", ["Qwen-Image", pytest.param("Z-Image", marks=pytest.mark.nightly)])
def test_prompts_that_are_not_padded(name: str, tmp_path: Path) -> None:
    """Each has a length of its own, and a bundle takes any between the shortest and the longest that were calibrated."""
    make, guidance = (tiny_qwen_image, {}) if name == "Qwen-Image" else (_long_z_image, {"guidance_scale": 0.0})
    make().save_pretrained(tmp_path / "pipeline")
    options = {**FAST, "steps": 2, "calibration_samples": 8, "dilation": "none", "final_samples": 0, **guidance}
    prompts = ["a cat", "two dogs on a sofa", "a tree", "the sea at night", "a red car", "a car"]
    made = quantize(tmp_path / "pipeline", tmp_path / "checkpoint", prompts=prompts, height=16, width=16, **options)
    *calibrated, between = made.details.calibrated_sizes
    assert [size.calibrated for size in (*calibrated, between)] == [True] * 4 + [False]
    lengths = [size.tokens or 0 for size in calibrated]
    assert lengths[-1] - lengths[0] == len("two dogs on a sofa") - len("a cat")
    assert made.manifest.details["calibration"]["prompts"]["count"] == len(prompts)
    bundle = export(made, tmp_path / "bundle", target="onnxruntime")
    result = check(bundle, made, optimized=False)
    assert result, result.failures
    drawn = draw(bundle, Drawing(n=2, prompts=["a tall tree", "two dogs on a bed"]))
    assert min(drawn.psnr_db or [0]) > 20
    with pytest.raises(UsageError, match=r"takes sizes from \d+ to \d+\n.* --prompts FILE, with a prompt of \d+ tokens among them"):
        draw(bundle, Drawing(n=1, prompts=["two dogs on a sofa and a cat"], compare_float=False))


def test_guidance_of_another_length_is_refused(tmp_path: Path) -> None:
    options = {**FAST, "steps": 2, "calibration_samples": 2, "dilation": "none", "final_samples": 0}
    with pytest.raises(UsageError, match=r"encoder_hidden_states of \[\d+, 16\] and \[\d+, 16\] for one picture, and guidance's halves"):
        quantize(tiny_qwen_image(), tmp_path / "out", prompts=["a cat"], negative_prompt=" ", height=16, width=16, **options)


def _long_z_image() -> Any:
    """With positions for texts of more than 64 tokens."""
    pipeline = tiny_z_image_pipeline()
    own = pipeline.transformer
    pipeline.register_modules(transformer=randomized(type(own)(**{**own.config, "axes_lens": [256, 64, 64]})))
    return pipeline


def test_a_network_of_one_length_of_text_says_so(tmp_path: Path) -> None:
    make = tiny_z_image_pipeline()  # it has positions for 64 tokens, and one prompt makes more
    with pytest.raises(
        UsageError, match="the pipeline does not pad its prompts, which have .* tokens, .* tokens, and its network"
    ) as error:
        quantize(make, tmp_path / "out", prompts=["a", "a cat on a mat " * 3], height=16, width=16, guidance_scale=0.0, **FAST)
    assert error.value.hint == "choose prompts that make as many tokens as each other"


def test_what_has_no_length_to_choose(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_stable_diffusion().save_pretrained("pipeline")
    Path("prompts.txt").write_text("a cat\n")
    refused = cli("quantize", "pipeline", "-o", "out", "--prompts", "prompts.txt", "--tokens", "4,8")
    assert_refused(refused, 2, "a StableDiffusionPipeline fixes the length of its text", "leave --tokens out")
    module = cli("quantize", "builtin:fashion-mnist-unet", "-o", "out", "--tokens", "8")
    assert_refused(module, 2, "--tokens are lengths of a pipeline's text, and fashion-mnist-unet takes none")
    assert_refused(cli("quantize", "pipeline", "-o", "out", "--tokens", "4,x"), 2, "--tokens takes whole numbers")
