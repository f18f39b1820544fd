"""Model repositories for Triton: valid by its own schema, and requests at different timesteps answered as if each had come alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.text_format import ParseError

from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.triton import triton_repository
from dq_deploy.errors import ArtifactError, UsageError
from tests.bundles import float_bundle
from tests.engines import graphs
from tests.engines.tensorrt.fake import engine_of
from tests.engines.triton_like import TritonLike, parse


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return graphs.network(tmp_path_factory.mktemp("bundle") / "unet", external=True)


@pytest.fixture(scope="module")
def engine(bundle: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build_engine(bundle, tmp_path_factory.mktemp("engine") / "unet", backend="openvino", batch=(1, 2, 4))


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same bundle with its weights inside: ONNX Runtime reads no shapes from external data, which the exporter leaves inside too."""
    return graphs.network(tmp_path_factory.mktemp("bundle") / "unet")


def request(batch: int, steps: list[float]) -> dict[str, Any]:
    sample = np.random.default_rng(int(10 * steps[0])).standard_normal((batch, 8, 8, 8)).astype(np.float32)
    return {"sample": sample, "timestep": np.array(steps, np.float32).reshape(batch, 1)}


@pytest.mark.parametrize("kind", ["bundle", "engine"])
def test_requests_at_different_timesteps_share_a_batch_exactly(one_file: Artifact, engine: Artifact, tmp_path: Path, kind: str) -> None:
    repository = triton_repository({"bundle": one_file, "engine": engine}[kind], tmp_path / "models", max_batch_size=4)
    server = TritonLike(repository.path)
    requests = [request(1, [3.0]), request(2, [0.0, 2.0]), request(1, [1.0])]
    together = server.infer(requests)
    alone = [server.infer([one])[0] for one in requests]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    # The timesteps matter: the same samples at other steps have other answers.
    other = server.infer([{**requests[0], "timestep": np.zeros((1, 1), np.float32)}])[0]
    assert np.abs(other - alone[0]).max() > 1e-2


def test_configuration_of_a_bundle(bundle: Artifact, tmp_path: Path) -> None:
    repository = triton_repository(bundle, tmp_path / "models", name="denoiser", max_batch_size=16, queue_delay_us=500, instances=2)
    assert set(repository.manifest.files) == {"denoiser/config.pbtxt", "denoiser/1/model.onnx", "denoiser/1/model.onnx.data"}
    assert repository.manifest.parent == bundle.as_parent
    config = parse(repository.path / "denoiser" / "config.pbtxt")
    assert (config.name, config.platform, config.backend, config.max_batch_size) == ("denoiser", "onnxruntime_onnx", "onnxruntime", 16)
    sample, timestep = config.input
    assert (sample.name, list(sample.dims), sample.HasField("reshape")) == ("sample", [8, 8, 8], False)
    assert (timestep.name, list(timestep.dims), timestep.HasField("reshape"), list(timestep.reshape.shape)) == ("timestep", [1], True, [])
    assert [(tensor.name, len(tensor.dims)) for tensor in config.output] == [("out_sample", 2)]
    assert (list(config.dynamic_batching.preferred_batch_size), config.dynamic_batching.max_queue_delay_microseconds) == ([16], 500)
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (2, 0)
    assert [(warmup.batch_size, list(warmup.inputs["sample"].dims)) for warmup in config.model_warmup] == [(1, [8, 8, 8]), (16, [8, 8, 8])]
    assert list(config.model_warmup[0].inputs["timestep"].dims) == [1]


def test_configuration_of_an_engine_of_openvino(engine: Artifact, tmp_path: Path) -> None:
    repository = triton_repository(engine, tmp_path / "models")
    assert set(repository.manifest.files) == {"unet/config.pbtxt", "unet/1/model.xml", "unet/1/model.bin"}
    config = parse(repository.path / "unet" / "config.pbtxt")
    assert (config.platform, config.backend, config.max_batch_size) == ("", "openvino", 4)
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
    assert config.instance_group[0].DESCRIPTOR.enum_types_by_name["Kind"].values_by_number[config.instance_group[0].kind].name == "KIND_CPU"


@pytest.mark.parametrize("capabilities", [["8.9"], ["8.6", "8.9"]])
def test_configuration_of_engines_of_tensorrt(bundle: Artifact, tmp_path: Path, capabilities: list[str]) -> None:
    entries = [{"compute_capability": c, "file": "model.sm89.engine", "report": "layers.sm89.json"} for c in capabilities]
    spec = {"name": "out_sample", "dtype": "float16", "shape": ["batch", 3, 8, 8]}
    engine = engine_of(bundle, tmp_path / "plan", engines=entries, output_spec=spec)
    config = parse(triton_repository(engine, tmp_path / "models").path / "plan" / "config.pbtxt")
    assert (config.platform, config.backend, config.max_batch_size) == ("tensorrt_plan", "tensorrt", 4)
    assert (list(config.output[0].dims), config.output[0].data_type) == ([3, 8, 8], 10)  # TYPE_FP16
    files = {path.name for path in (tmp_path / "models" / "plan" / "1").iterdir()}
    if len(capabilities) == 1:
        assert (files, dict(config.cc_model_filenames)) == ({"model.plan"}, {})
    else:
        assert files == set(config.cc_model_filenames.values()) == {"model.sm89.plan"}
        assert set(config.cc_model_filenames) == {"8.6", "8.9"}


def test_one_timestep_for_a_batch_is_never_put_together(pipeline_dir: Path, tmp_path: Path) -> None:
    bundle = float_bundle(tmp_path / "unet", pipeline_dir, target="onnxruntime")
    server = TritonLike(triton_repository(bundle, tmp_path / "models").path)
    assert server.config.max_batch_size == 0
    assert not server.config.HasField("dynamic_batching")
    assert [list(tensor.dims) for tensor in server.config.input] == [[-1, 1, 8, 8], [1]]
    assert [(w.batch_size, list(w.inputs["sample"].dims)) for w in server.config.model_warmup] == [(1, [1, 1, 8, 8])]
    requests = [{"sample": np.ones((n, 1, 8, 8), np.float32), "timestep": np.array([250.0 * n], np.float32)} for n in (1, 3)]
    assert [answer.shape for answer in server.infer(requests)] == [(1, 1, 8, 8), (3, 1, 8, 8)]
    with pytest.raises(UsageError, match="takes one timestep for a whole batch(?s:.*)export it with --target qdq"):
        triton_repository(bundle, tmp_path / "other", max_batch_size=4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"instances": 0, "max_batch_size": 0, "queue_delay_us": -1}, "instances is 0.*max_batch_size is 0.*queue_delay_us is -1"),
        ({"name": "../up"}, "'../up' is not a name for a model"),
        ({"name": 'a"b'}, "is not a name for a model"),
        ({"max_batch_size": 5}, "max_batch_size is 5, and .* was built for at most 4"),
        ({"device": "gpu"}, "an engine of openvino does not run on a GPU"),
    ],
)
def test_refused_options(engine: Artifact, tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        triton_repository(engine, tmp_path / "models", **options)
    assert not (tmp_path / "models").exists()


def test_refused_artefacts(bundle: Artifact, tmp_path: Path) -> None:
    spec = {"name": "out_sample", "dtype": "float32", "shape": ["batch", 8]}
    for changes, expected in (
        ({"backend": "tensorrt-rtx"}, "is an engine of TensorRT-RTX, for which Triton has no backend"),
        ({"batch": [2, 2, 4], "output_spec": spec}, "was built for batches from 2 on(?s:.*)--batch 1,2,4"),
        ({}, "does not say what shape the output has"),
        ({"output_spec": spec | {"dtype": "float8"}}, "is float8, which Triton has no type for"),
    ):
        engine = engine_of(bundle, tmp_path / f"engine-{len(list(tmp_path.iterdir()))}", **changes)
        with pytest.raises(ArtifactError, match=expected):
            triton_repository(engine, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_only_our_own_repository_is_replaced(engine: Artifact, tmp_path: Path) -> None:
    output = tmp_path / "models"
    triton_repository(engine, output)
    with pytest.raises(UsageError, match="already exists"):
        triton_repository(engine, output)
    triton_repository(engine, output, name="other", force=True)
    assert {path.name for path in output.iterdir()} == {"manifest.json", "other"}
    (tmp_path / "theirs" / "model").mkdir(parents=True)
    with pytest.raises(UsageError, match="is not an artefact of dq-deploy"):
        triton_repository(engine, tmp_path / "theirs", force=True)


def test_repository_is_verified_like_any_artefact(engine: Artifact, tmp_path: Path) -> None:
    repository = triton_repository(engine, tmp_path / "models")
    (repository.path / "unet" / "config.pbtxt").write_text("name: 'x'")
    with pytest.raises(ArtifactError, match=r"'unet/config\.pbtxt' has"):
        open_artifact(repository.path, "triton-repository")


def test_the_schema_refuses_what_triton_would(tmp_path: Path) -> None:
    for text in ('name: "a" max_batch: 8', 'input { name: "x" data_type: TYPE_FLOAT }', 'name: "a'):
        (tmp_path / "config.pbtxt").write_text(text)
        with pytest.raises(ParseError):
            parse(tmp_path / "config.pbtxt")
