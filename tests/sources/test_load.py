"""Loading real pipelines: the built-in, folders, a hub cache, objects; and refusing what cannot be trusted."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiTPipeline, UNet2DModel
from safetensors.torch import load_file, save_file

from dq_deploy.errors import ArtifactError, EnvironmentProblem, UsageError
from dq_deploy.quantization.calibration.classes import ClassSpace, class_space
from dq_deploy.sources import builtin_names, builtin_path, load_source, module_source, weights_sha256
from tests.tiny_pipelines import tiny_dit, tiny_vae

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
BUILTIN = "builtin:fashion-mnist-unet"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pipeline as diffusers writes it."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    root = tmp_path_factory.mktemp("saved") / "tiny"
    DDPMPipeline(unet, DDIMScheduler(num_train_timesteps=100)).save_pretrained(root)
    return root


@pytest.fixture
def pipeline_dir(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def test_builtin() -> None:
    source = load_source(BUILTIN)
    assert (source.name, source.reference, source.component) == ("fashion-mnist-unet", BUILTIN, "unet")
    assert source.pipeline_class == "DDPMPipeline"
    assert source.sample_shape == (1, 32, 32)
    assert source.config["_class_name"] == "UNet2DModel"
    assert "_name_or_path" not in source.config
    assert source.scheduler.config.num_train_timesteps == 1000
    assert not source.model.training
    assert {p.dtype for p in source.model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in source.model.parameters()) == 2_734_945
    stored = load_file(builtin_path("fashion-mnist-unet") / WEIGHTS)
    assert {t.dtype for t in stored.values()} == {torch.float16}
    assert source.sha256 == weights_sha256(stored)


def test_builtin_is_a_trained_network() -> None:
    """At the noisiest timestep the sample is nearly all noise, which a trained network gives back."""
    source = load_source(BUILTIN)
    noise = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prediction = source.model(noise, torch.tensor(999)).sample
    assert torch.nn.functional.mse_loss(prediction, noise) < 0.05


def test_builtin_transformer() -> None:
    source = load_source("builtin:fashion-mnist-dit")
    assert (source.name, source.component, source.pipeline_class) == ("fashion-mnist-dit", "transformer", "DiTPipeline")
    assert source.sample_shape == (1, 32, 32)
    assert sum(p.numel() for p in source.model.parameters()) == 1_775_504
    assert class_space(source.model, source.config) == ClassSpace(10, null=10)
    stored = load_file(builtin_path("fashion-mnist-dit") / "transformer/diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    assert DiTPipeline.from_pretrained(builtin_path("fashion-mnist-dit"), vae=None).vae is None


def test_builtin_transformer_is_trained_and_listens_to_its_labels() -> None:
    """A drawn pair of trousers under much noise: told what it is, the network finds the noise better than told of a bag."""
    source = load_source("builtin:fashion-mnist-dit")
    trousers = torch.full((1, 1, 32, 32), -1.0)
    trousers[..., 3:29, 11:15] = trousers[..., 3:29, 17:21] = trousers[..., 3:9, 11:21] = 0.2
    noise = torch.randn(32, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    timesteps = torch.full((32,), 600)
    noisy = source.scheduler.add_noise(trousers.expand_as(noise), noise, timesteps)

    def loss(label: int) -> float:
        with torch.no_grad():
            prediction = source.model(noisy, timesteps, class_labels=torch.full((32,), label)).sample
        return float(torch.nn.functional.mse_loss(prediction, noise))

    assert loss(1) < 0.02
    assert loss(1) < 0.8 * loss(8)


def test_local_folder_gives_the_weights_that_were_saved(saved: Path) -> None:
    source = load_source(saved)
    assert (source.name, source.sample_shape, type(source.scheduler).__name__) == ("tiny", (3, 16, 16), "DDIMScheduler")
    stored = load_file(saved / WEIGHTS)
    assert all(torch.equal(stored[name], tensor) for name, tensor in source.model.state_dict().items())
    assert source.sha256 == load_source(str(saved)).sha256


def test_class_conditional_transformer_with_its_autoencoder(tmp_path: Path) -> None:
    transformer = tiny_dit(in_channels=4, out_channels=8)
    DiTPipeline(transformer, tiny_vae(), DDIMScheduler()).save_pretrained(tmp_path / "dit")
    source = load_source(tmp_path / "dit")
    assert (source.component, source.pipeline_class, source.sample_shape) == ("transformer", "DiTPipeline", (4, 8, 8))
    assert (source.config["_class_name"], source.config["num_embeds_ada_norm"]) == ("DiTTransformer2DModel", 5)
    assert source.sha256 == weights_sha256(transformer.state_dict())


def test_half_precision_variant_alone_is_found(pipeline_dir: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in load_file(pipeline_dir / WEIGHTS).items()}
    (pipeline_dir / WEIGHTS).unlink()
    save_file(tensors, pipeline_dir / "unet/diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    source = load_source(pipeline_dir)
    assert {p.dtype for p in source.model.parameters()} == {torch.float32}
    assert source.sha256 == weights_sha256(tensors)


def test_sample_size_as_a_pair(pipeline_dir: Path) -> None:
    edit_json(pipeline_dir / "unet/config.json", sample_size=[16, 32])
    assert load_source(pipeline_dir).sample_shape == (3, 16, 32)


def test_hub_cache_of_symlinks(saved: Path, tmp_path: Path) -> None:
    snapshot = make_hub_cache(saved, tmp_path / "hub", "someone/tiny")
    assert all(path.is_symlink() for path in snapshot.rglob("*") if not path.is_dir())
    assert load_source(snapshot).sha256 == load_source(saved).sha256


def test_hub_id_from_the_cache(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    make_hub_cache(saved, tmp_path / "hub", "someone/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    source = load_source("someone/tiny")
    assert (source.name, source.reference) == ("tiny", "someone/tiny")
    assert source.sha256 == load_source(saved).sha256


def test_pipeline_object_is_copied(saved: Path) -> None:
    pipeline = DDPMPipeline.from_pretrained(saved, use_safetensors=True)
    pipeline.unet.half().train()
    source = load_source(pipeline)
    assert (source.name, source.reference, source.pipeline_class) == ("DDPMPipeline", "object:DDPMPipeline", "DDPMPipeline")
    assert {p.dtype for p in source.model.parameters()} == {torch.float32}
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.float16}
    assert pipeline.unet.training
    assert not source.model.training
    assert source.sample_shape == (3, 16, 16)


def test_module_object() -> None:
    module = torch.nn.Linear(4, 4)
    source = module_source(module, DDIMScheduler(), (4,))
    assert (source.name, source.component, source.pipeline_class, source.sample_shape) == ("Linear", "module", "", (4,))
    assert source.model is not module
    assert all(torch.equal(value, source.model.state_dict()[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("shape", [(), (0, 4), (1.5,)])
def test_module_object_with_a_bad_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="sample_shape must be positive whole numbers without the batch"):
        module_source(torch.nn.Linear(4, 4), DDIMScheduler(), shape)


def test_weights_hash_depends_on_names_values_and_shapes() -> None:
    one = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    assert weights_sha256(one) == weights_sha256(dict(reversed(one.items())))
    for other in ({"a": one["b"], "b": one["a"]}, {**one, "a": one["a"].reshape(2, 2)}, {**one, "b": torch.tensor([0.0, 1e-30])}):
        assert weights_sha256(other) != weights_sha256(one)


def test_unknown_builtin_lists_those_that_exist() -> None:
    assert builtin_names() == ["fashion-mnist-dit", "fashion-mnist-text", "fashion-mnist-unet"]
    known = "builtin:fashion-mnist-dit, builtin:fashion-mnist-text, builtin:fashion-mnist-unet"
    message = rf"unknown built-in model 'builtin:nope'\nthose that exist: {known}"
    with pytest.raises(UsageError, match=message):
        load_source("builtin:nope")
    with pytest.raises(UsageError, match="unknown built-in"):
        load_source("builtin:../builtin/fashion-mnist-unet")


@pytest.mark.parametrize("missing", ["nowhere", "./no/where", "/nowhere/at/all"])
def test_no_such_path(missing: str) -> None:
    with pytest.raises(UsageError, match=f"no such path: {missing}\n.*builtin:fashion-mnist-unet"):
        load_source(missing)


def test_hub_id_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = "no such path: someone/nothing; as a model of the hub it is not in the cache on this machine, and the hub cannot be reached"
    with pytest.raises(EnvironmentProblem, match=message):
        load_source("someone/nothing")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()  # then it was meant as a path
    with pytest.raises(UsageError, match="no such path: someone/nothing; nor can it be had from the hub"):
        load_source("someone/nothing")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/dev/null/cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/dev/null/token")
    with pytest.raises(EnvironmentProblem, match=r"the hub's cache on this machine cannot be used: .*\nset HF_HOME to a folder"):
        load_source("other/nothing")


def test_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not a diffusers pipeline: it has no model_index.json"):
        load_source(tmp_path)


def test_file_instead_of_a_folder(saved: Path) -> None:
    with pytest.raises(ArtifactError, match="model_index.json is a file of the pipeline in .*/tiny\ngive the folder: .*/tiny"):
        load_source(saved / "model_index.json")


def test_not_a_source_at_all() -> None:
    with pytest.raises(UsageError, match="not a Linear"):
        load_source(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[]", "names no pipeline class"),
        (b'{"_class_name": "DDPMPipeline"}', "a DDPMPipeline without a denoiser; one of unet, transformer is needed"),
        (b'{"_class_name": "P", "unet": [null, null]}', "without a denoiser"),
        (b'{"_class_name": "P", "unet": ["diffusers", "UNet2DModel"]}', "names no scheduler"),
        (b'{"_class_name": "P", "unet": "UNet2DModel"}', "'unet' must be a pair of library and class"),
        (b'{"_class_name": "P", "unet": ["diffusers", "Nope"], "scheduler": ["diffusers", "DDIMScheduler"]}', "has no model class 'Nope'"),
        (
            b'{"_class_name": "P", "unet": ["diffusers", "DDIMScheduler"], "scheduler": ["diffusers", "DDIMScheduler"]}',
            "has no model class",
        ),
        (
            b'{"_class_name": "P", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "UNet2DModel"]}',
            "has no scheduler class",
        ),
    ],
)
def test_damaged_index(pipeline_dir: Path, index: bytes, message: str) -> None:
    (pipeline_dir / "model_index.json").write_bytes(index)
    with pytest.raises(ArtifactError, match=message):
        load_source(pipeline_dir)


def test_code_in_the_folder_is_not_run(pipeline_dir: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    for place in (pipeline_dir, pipeline_dir / "unet", pipeline_dir / "scheduler"):
        (place / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass UNet2DModel: pass\n")
    edit_json(pipeline_dir / "model_index.json", unet=["evil", "UNet2DModel"])
    with pytest.raises(ArtifactError, match="'unet' asks for evil.UNet2DModel; only classes of diffusers are loaded"):
        load_source(pipeline_dir)
    edit_json(pipeline_dir / "model_index.json", unet=["diffusers", "UNet2DModel"], _class_name="evil")
    edit_json(pipeline_dir / "unet/config.json", _class_name="evil", auto_map={"AutoModel": "evil.UNet2DModel"})
    load_source(pipeline_dir)
    assert not marker.exists()


def test_not_a_number_names_the_tensors(pipeline_dir: Path) -> None:
    tensors = load_file(pipeline_dir / WEIGHTS)
    tensors["conv_in.weight"][0, 0, 0, 0] = torch.nan
    tensors["conv_out.bias"][0] = torch.inf
    save_file(tensors, pipeline_dir / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"NaN or infinite values in 2 of \d+ tensors: conv_in.weight, conv_out.bias"):
        load_source(pipeline_dir)


def test_pickled_weights_are_refused(pipeline_dir: Path) -> None:
    (pipeline_dir / WEIGHTS).unlink()
    (pipeline_dir / "unet/diffusion_pytorch_model.bin").write_bytes(b"not even read")
    with pytest.raises(ArtifactError, match=r"only pickled weights \(diffusion_pytorch_model.bin\), which can run code when loaded"):
        load_source(pipeline_dir)


def test_no_weights(pipeline_dir: Path) -> None:
    (pipeline_dir / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="has no weights"):
        load_source(pipeline_dir)
    shutil.rmtree(pipeline_dir / "unet")
    with pytest.raises(ArtifactError, match="has no folder 'unet'"):
        load_source(pipeline_dir)


def test_truncated_weights(pipeline_dir: Path) -> None:
    data = (pipeline_dir / WEIGHTS).read_bytes()
    (pipeline_dir / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"unet/.*: not a valid safetensors file \(its tensors take \d+ bytes, and \d+ are there\)"):
        load_source(pipeline_dir)


@pytest.mark.parametrize("change", ["missing", "unexpected", "mismatched"])
def test_weights_that_do_not_fit(pipeline_dir: Path, change: str) -> None:
    tensors = load_file(pipeline_dir / WEIGHTS)
    if change == "missing":
        del tensors["conv_in.weight"]
    elif change == "unexpected":
        tensors["surplus.weight"] = torch.zeros(1)
    else:
        tensors["conv_in.weight"] = torch.zeros(1)
    save_file(tensors, pipeline_dir / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"surplus\.weight|conv_in\.weight"):
        load_source(pipeline_dir)


def test_scheduler_missing_from_the_folder(pipeline_dir: Path) -> None:
    shutil.rmtree(pipeline_dir / "scheduler")
    with pytest.raises(ArtifactError, match="cannot load the DDIMScheduler"):
        load_source(pipeline_dir)


def test_no_sample_size(pipeline_dir: Path) -> None:
    # FLUX's models say none, and their pipelines choose one. Whoever needs it says so (tests/quantization/test_calibration_source.py).
    edit_json(pipeline_dir / "unet/config.json", sample_size=None)
    assert load_source(pipeline_dir).sample_shape == ()


def test_without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(EnvironmentProblem, match=r"(?s)needs diffusers.*pip install diffusers"):
        load_source(BUILTIN)


def test_source_is_frozen() -> None:
    source = module_source(torch.nn.Linear(1, 1), DDIMScheduler(), (1,))
    with pytest.raises(AttributeError):
        source.name = "other"  # type: ignore[misc]
    assert copy.copy(source).name == source.name


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def make_hub_cache(saved: Path, cache: Path, hub_id: str) -> Path:
    """The hub's cache layout: blobs, and a snapshot of relative links to them."""
    repo = cache / f"models--{hub_id.replace('/', '--')}"
    commit = "0" * 40
    snapshot = repo / "snapshots" / commit
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    for number, file in enumerate(sorted(p for p in saved.rglob("*") if p.is_file())):
        blob = repo / "blobs" / f"{number:040d}"
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(saved)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(repo).parts) - 1)) / "blobs" / blob.name)
    return snapshot
