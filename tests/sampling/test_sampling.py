"""Pictures from a bundle in the real pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DiTPipeline
from PIL import Image

from dq_deploy.artifacts import Artifact, Manifest, create_artifact, open_artifact
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.quantization import quantize
from dq_deploy.sampling import not_drawable, sample
from dq_deploy.sampling.seeds import picture_seed
from tests.flow import Flow
from tests.tiny_pipelines import tiny_dit, tiny_picture


def altered(bundle: Artifact, path: Path, **details: Any) -> Path:
    """A copy of a bundle whose manifest says something else."""
    manifest = bundle.manifest.model_copy(update={"details": {**bundle.manifest.details, **details}}, deep=True)
    with create_artifact(path, manifest) as work:
        (work / "model.onnx").write_bytes(bundle.file("model.onnx").read_bytes())
    return path


def test_quantized_beside_float_from_the_same_seeds(tiny_bundle: Artifact, pipeline_dir: Path, tmp_path: Path) -> None:
    done: list[str] = []

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Any]:
        done.append(f"{description} {total}")
        yield lambda count: done.extend(["step"] * count)

    result = sample(tiny_bundle.path, tmp_path / "grid.png", n=5, seed=3, batch_size=2, progress=progress)
    assert (result.engine, result.n, result.timesteps) == ("onnxruntime", 5, [750.0, 500.0, 250.0, 0.0])
    assert result.furthest == 0.0
    # This bundle is the float model, so only rounding tells them apart.
    assert result.psnr_db is not None
    assert len(result.psnr_db) == 5
    assert result.psnr_min_db is not None
    assert result.psnr_min_db > 60
    json.dumps(result.to_json(), allow_nan=False)
    assert done == ["sampling 24"] + ["step"] * 24

    # 5 pictures of 8 pixels in 3 columns and 2 rows, enlarged 12 times, twice side by side.
    picture = Image.open(tmp_path / "grid.png")
    assert picture.size == (24 + 2 * (3 * 102 - 6 + 24), 62 + 2 * 102 - 6 + 24)  # a title of two lines

    pipe = DDIMPipeline.from_pretrained(pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(picture_seed(3, 4))
    fifth = pipe(1, generator=generator, num_inference_steps=4, output_type="np").images[0]
    pixels = np.asarray(picture)[62 + 102 :: 12, 24 + 102 :: 12, 0][:8, :8]  # second row, second column of the left panel
    np.testing.assert_array_equal(pixels, np.round(fifth[..., 0] * 255))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_picture_does_not_depend_on_the_batch_size(tiny_bundle: Artifact, tmp_path: Path, runtime: Any) -> None:
    for size in (1, 3):
        sample(tiny_bundle.path, tmp_path / f"{size}.png", n=3, batch_size=size, steps=2, compare_float=False, runtime=runtime)
    one, three = (np.asarray(Image.open(tmp_path / f"{size}.png"), dtype=int) for size in (1, 3))
    assert np.abs(one - three).max() <= 1  # of 255: float kernels round differently for another batch size


def test_other_steps_and_no_comparison(tiny_bundle: Artifact, tmp_path: Path) -> None:
    result = sample(tiny_bundle.path, tmp_path / "grid.png", n=1, steps=3, compare_float=False)
    assert result.timesteps == [666.0, 333.0, 0.0]
    assert result.furthest == 84.0
    assert result.psnr_db is None
    assert result.psnr_mean_db is None


def test_an_existing_output_needs_force(tiny_bundle: Artifact, tmp_path: Path) -> None:
    output = tmp_path / "grid.png"
    output.write_bytes(b"mine")
    with pytest.raises(UsageError, match="already exists\nchoose another output, or pass --force"):
        sample(tiny_bundle.path, output)
    assert output.read_bytes() == b"mine"
    sample(tiny_bundle.path, output, n=1, steps=1, compare_float=False, force=True)
    assert output.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0, "steps": 0}, "n is 0, and at least 1 is needed; steps is 0, and at least 1 is needed"),
        ({"steps": 1001}, "the scheduler refuses 1001 steps: .* cannot be larger .*\nchoose fewer --steps"),
        ({"batch_size": 0}, "batch size is 0"),
    ],
)
def test_settings_that_draw_nothing_are_refused(tiny_bundle: Artifact, tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sample(tiny_bundle.path, tmp_path / "grid.png", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_output_must_be_a_png_in_a_writable_place(tiny_bundle: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not end in \.png"):
        sample(tiny_bundle.path, tmp_path / "grid.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is not a writable folder"):
        sample(tiny_bundle.path, tmp_path / "file" / "grid.png")


def test_float_model_must_be_the_one_quantized(tiny_bundle: Artifact, pipeline_dir: Path, tmp_path: Path) -> None:
    pipe = DDPMPipeline.from_pretrained(pipeline_dir)
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(1e-3)
    pipe.save_pretrained(tmp_path / "other")
    source = {**tiny_bundle.manifest.details["source"], "reference": str(tmp_path / "other")}
    source = {name: value for name, value in source.items() if name not in ("absolute", "relative")}
    with pytest.raises(
        ArtifactError, match="other has other weights now than when .* was made from it\nsample without .*--no-compare-float"
    ):
        sample(altered(tiny_bundle, tmp_path / "changed", source=source), tmp_path / "grid.png")
    with pytest.raises(UsageError, match="made from a model in memory"):
        sample(altered(tiny_bundle, tmp_path / "memory", source=None), tmp_path / "grid.png")


@pytest.fixture(scope="module")
def class_conditional(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A transformer with 5 classes that predicts a variance too, quantized."""
    path = tmp_path_factory.mktemp("classes")
    transformer = tiny_dit()
    transformer.save_pretrained(path / "pipeline/transformer")
    DDIMScheduler().save_pretrained(path / "pipeline/scheduler")
    DiTPipeline(transformer, None, DDIMScheduler()).save_config(path / "pipeline")
    return quantize(path / "pipeline", path / "out", steps=2, calibration_samples=5, iterations=0, max_float_share=0.2)


def test_classes_are_drawn_in_turn(class_conditional: Artifact, tmp_path: Path) -> None:
    def pictures(name: str, **options: Any) -> list[bytes]:
        sample(class_conditional.path, tmp_path / f"{name}.png", n=7, batch_size=3, compare_float=False, **options)
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png"))[40:, 24:]  # 3 columns of 8 pixels, enlarged 12 times, 6 between
        return [pixels[102 * (i // 3) :, 102 * (i % 3) :][:96, :96].tobytes() for i in range(7)]

    everything = pictures("all")
    assert pictures("again", classes=[0, 1, 2, 3, 4]) == everything
    three = pictures("three", classes="0-2")
    assert [a == b for a, b in zip(everything, three, strict=True)] == [True] * 3 + [False] * 4
    compared = sample(class_conditional.path, tmp_path / "compared.png", n=7)
    assert compared.psnr_min_db is not None
    assert compared.psnr_min_db > 20


def test_guidance_is_that_of_diffusers_pipeline(class_conditional: Artifact, tmp_path: Path) -> None:
    plain = sample(class_conditional.path, tmp_path / "plain.png", n=2, compare_float=False)
    assert plain.guidance_scale is None
    guided = sample(class_conditional.path, tmp_path / "guided.png", n=2, classes=[3, 1], guidance_scale=4.0, batch_size=1)
    assert guided.guidance_scale == 4.0
    assert guided.psnr_db is not None

    # The same by hand: both halves in one batch, and the guided noise into DDIM's step.
    dit, scheduler = tiny_dit(), DDIMScheduler()
    scheduler.set_timesteps(2)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(picture_seed(0, 0)))
    with torch.no_grad():
        for t in scheduler.timesteps:
            halves = dit(torch.cat([x, x]), t.expand(2), class_labels=torch.tensor([3, 5])).sample[:, :1]
            x = scheduler.step(halves[1:] + 4.0 * (halves[:1] - halves[1:]), t, x).prev_sample
    expected = np.round((x[0, 0] / 2 + 0.5).clamp(0, 1).numpy() * 255)
    pixels = np.asarray(Image.open(tmp_path / "guided.png"))[62::12, 24::12, 0][:8, :8]
    np.testing.assert_allclose(pixels.astype(int), expected, atol=1)


def test_classes_that_there_are_not(class_conditional: Artifact, tiny_bundle: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no class 5: the model has classes 0 to 4"):
        sample(class_conditional.path, tmp_path / "grid.png", classes="0-5")
    with pytest.raises(UsageError, match="classes are given, and the model takes no classes"):
        sample(tiny_bundle.path, tmp_path / "grid.png", classes="0")
    with pytest.raises(UsageError, match="a guidance scale is given, and the model takes no classes"):
        sample(tiny_bundle.path, tmp_path / "grid.png", guidance_scale=2.0)
    with pytest.raises(UsageError, match="the guidance scale is nan"):
        sample(class_conditional.path, tmp_path / "grid.png", guidance_scale=float("nan"))
    unknown = {**class_conditional.manifest.details["model_config"], "num_embeds_ada_norm": None}
    changed = class_conditional.manifest.model_copy(update={"details": {**class_conditional.manifest.details, "model_config": unknown}})
    with create_artifact(tmp_path / "changed", changed):
        pass
    with pytest.raises(UsageError, match="takes class_labels, and its configuration does not say how many there are"):
        sample(tmp_path / "changed", tmp_path / "grid.png")


def test_what_no_pipeline_can_be_loaded_for_is_refused(tiny_bundle: Artifact, tmp_path: Path) -> None:
    inputs = [*tiny_bundle.manifest.details["inputs"], {"name": "encoder_hidden_states", "dtype": "float32", "shape": ["batch", 77, 8]}]
    memory = {"reference": "object:StableDiffusionPipeline", "sha256": "0"}
    path = altered(tiny_bundle, tmp_path / "text", inputs=inputs, sample_shape=[4, 8, 8], source=memory)
    assert "text takes encoder_hidden_states, which the pipeline that it came from would make" in (
        not_drawable(open_artifact(path, "bundle")) or ""
    )
    with pytest.raises(UsageError, match="made from a model in memory"):
        sample(path, tmp_path / "grid.png", prompts=["a"])
    with pytest.raises(UsageError, match="a prompt is given, and the model takes none"):
        sample(tiny_bundle.path, tmp_path / "grid.png", prompts=["a"])
    with pytest.raises(UsageError, match="a picture is given, and the model draws from noise alone"):
        sample(tiny_bundle.path, tmp_path / "grid.png", image=[tiny_picture()])
    with create_artifact(tmp_path / "bare", Manifest(kind="bundle", model="m", details=tiny_bundle.manifest.details)):
        pass
    with pytest.raises(ArtifactError, match="no scheduler or no calibrated timesteps"):
        sample(tmp_path / "bare", tmp_path / "grid.png")


def test_a_checkpoint_at_another_size_than_its_own(flow: Flow, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the sample is \[1, 16, 16\], and .* was calibrated at \[1, 8, 8\]"):
        sample(flow.checkpoint, tmp_path / "grid.png", n=1, height=16, width=16)
