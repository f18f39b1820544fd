"""A whole pipeline's folder for other tools: our graph behind the inputs of the denoiser that the tool's exporter wrote.

The exported graphs here have the inputs that optimum-onnx and optimum-intel give a denoiser; test_tools.py runs the tools themselves.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import dq_deploy
from dq_deploy.engines.openvino.int8_kernels import kept_signal_stack
from dq_deploy.errors import ArtifactError, EnvironmentProblem, UsageError
from tests.command_line import Cli, assert_refused
from tests.engines.pipeline_folder.exported import CONFIG, make_bundle, make_exported

openvino = pytest.importorskip("openvino")


@pytest.fixture
def onnx_folder(tmp_path: Path) -> Path:
    return make_exported(tmp_path / "exported", "onnx", timestep="float timestep")


@pytest.fixture
def ir_folder(tmp_path: Path) -> Path:
    return make_exported(tmp_path / "exported", "openvino", timestep="int64[s] timestep")


def feeds(batch: int, timestep: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "sample": random.normal(size=(batch, 2, 4, 4)).astype(np.float32),
        "timestep": timestep,
        "encoder_hidden_states": random.normal(size=(batch, 3, 2)).astype(np.float32),
        "img_ids": random.normal(size=(2, 3)).astype(np.float32),
    }


def expected(given: dict[str, Any]) -> np.ndarray[Any, Any]:
    time = np.float32(np.asarray(given["timestep"]).reshape(-1)[0])
    return given["sample"] * time + given["encoder_hidden_states"].mean() + given["img_ids"].mean()


def compiled(folder: Path, **sizes: Any) -> Any:
    model = openvino.Core().read_model(folder / "unet" / "openvino_model.xml")
    if sizes:
        model.reshape(sizes)
    with kept_signal_stack():
        return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
def test_onnx_takes_what_the_tool_gives(tmp_path: Path, onnx_folder: Path, target: str) -> None:
    folder = dq_deploy.pipeline_folder(make_bundle(tmp_path / "b", target), tmp_path / "out", "optimum-onnx", exported=onnx_folder)
    file = folder.path / "unet" / "model.onnx"
    onnx.checker.check_model(file, full_check=True)
    session = onnxruntime.InferenceSession(file)
    assert [(entry.name, entry.shape) for entry in session.get_inputs()][1] == ("timestep", [])
    for batch in (1, 3):
        given = feeds(batch, np.array(7, np.float32))
        (found,) = session.run(["out_sample"], given)
        np.testing.assert_allclose(found, expected(given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("tool", "timestep"), [("openvino-genai", np.array([7], np.int64)), ("optimum-intel", np.array([6.5], np.float32))]
)
def test_openvino_takes_what_the_tool_gives(tmp_path: Path, ir_folder: Path, tool: str, timestep: Any) -> None:
    folder = dq_deploy.pipeline_folder(make_bundle(tmp_path / "b"), tmp_path / "out", tool, exported=ir_folder)
    # What optimum-intel does before it compiles: every size open, one timestep.
    model = compiled(folder.path, sample=[-1, 2, -1, -1], timestep=[1], encoder_hidden_states=[-1, -1, 2], img_ids=[-1, 3])
    assert model.input("timestep").get_element_type().get_type_name() == ("i64" if timestep.dtype == np.int64 else "f32")
    for batch in (1, 3):
        given = feeds(batch, timestep)
        np.testing.assert_allclose(model(given)["out_sample"], expected(given), rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="incompatible"):  # not the graph's size: refused before anything runs
        compiled(folder.path)({**feeds(1, timestep), "sample": np.zeros((1, 2, 8, 8), np.float32)})


def test_a_fixed_batch(tmp_path: Path, ir_folder: Path) -> None:
    folder = dq_deploy.pipeline_folder(make_bundle(tmp_path / "b"), tmp_path / "out", "openvino-genai", exported=ir_folder, batch=2)
    assert folder.details.batch == 2
    model, timestep = compiled(folder.path), np.array([7], np.int64)
    given = feeds(2, timestep)
    np.testing.assert_allclose(model(given)["out_sample"], expected(given), rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="incompatible"):
        model(feeds(3, timestep))


def test_a_fixed_batch_in_onnx(tmp_path: Path, onnx_folder: Path) -> None:
    folder = dq_deploy.pipeline_folder(make_bundle(tmp_path / "b"), tmp_path / "out", "optimum-onnx", exported=onnx_folder, batch=2)
    session = onnxruntime.InferenceSession(folder.path / "unet" / "model.onnx")
    given = feeds(2, np.array(7, np.float32))
    np.testing.assert_allclose(session.run(["out_sample"], given)[0], expected(given), rtol=1e-5, atol=1e-6)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        session.run(["out_sample"], feeds(3, np.array(7, np.float32)))


@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_pipeline_that_repeats_the_timestep_for_each_sample(tmp_path: Path, target: str, count: int) -> None:
    """As Stable Diffusion 3's does."""
    exported = make_exported(tmp_path / "exported", "onnx", timestep="float[step] timestep")
    folder = dq_deploy.pipeline_folder(make_bundle(tmp_path / "b", target), tmp_path / "out", "optimum-onnx", exported=exported)
    given = feeds(3, np.full(count, 7, np.float32))
    (found,) = onnxruntime.InferenceSession(folder.path / "unet" / "model.onnx").run(["out_sample"], given)
    np.testing.assert_allclose(found, expected(given), rtol=1e-5, atol=1e-6)


def test_the_rest_of_the_pipeline_is_as_it_was_exported(tmp_path: Path, onnx_folder: Path) -> None:
    folder = dq_deploy.pipeline_folder(make_bundle(tmp_path / "b"), tmp_path / "out", "optimum-onnx", exported=onnx_folder)
    assert set(folder.manifest.files) == {"model_index.json", "text_encoder/config.json", "unet/config.json", "unet/model.onnx"}
    for name in ("model_index.json", "unet/config.json"):
        assert folder.file(name).read_bytes() == (onnx_folder / name).read_bytes()
    assert (folder.details.tool, folder.details.pipeline_class, folder.details.component) == (
        "optimum-onnx",
        "StableDiffusionPipeline",
        "unet",
    )


def other_size(path: Path) -> Path:
    text = "float[b, 3, h, w] sample, float timestep, float[b, t, 2] encoder_hidden_states, float[p, 3] img_ids"
    return make_exported(path, "onnx", timestep="", inputs=text)


def other_inputs(path: Path) -> Path:
    return make_exported(
        path, "onnx", timestep="", inputs="float[b, 2, h, w] sample, float timestep, float[b, 8] text_embeds, float[p, 3] img_ids"
    )


def other_network(path: Path) -> Path:
    return make_exported(path, "onnx", timestep="float timestep", config={**CONFIG, "in_channels": 9})


def nothing(path: Path) -> Path:
    path.mkdir()
    return path


def broken_index(path: Path) -> Path:
    make_exported(path, "onnx", timestep="float timestep")
    (path / "model_index.json").write_text("[]")
    return path


def of_openvino(path: Path) -> Path:
    return make_exported(path, "openvino", timestep="int64[s] timestep")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_size, "gives sample [?, 3, ?, ?], and"),
        (other_inputs, "gives no 'encoder_hidden_states', which"),
        (other_network, "was exported from another network than the bundle: in_channels: 9 there, 2 in the bundle"),
        (nothing, "is not a pipeline that optimum-onnx has exported"),
        (broken_index, "model_index.json is not an object"),
        (of_openvino, "it has no unet/model.onnx or transformer/model.onnx"),
    ],
)
def test_what_was_exported_of_something_else(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(ArtifactError) as error:
        dq_deploy.pipeline_folder(make_bundle(tmp_path / "b"), tmp_path / "out", "optimum-onnx", exported=make(tmp_path / "exported"))
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_fit(tmp_path: Path, ir_folder: Path, cli: Cli) -> None:
    bundle, own = make_bundle(tmp_path / "b"), make_bundle(tmp_path / "own", "onnxruntime")
    with pytest.raises(UsageError, match="unknown tool 'comfyui'"):
        dq_deploy.pipeline_folder(bundle, tmp_path / "out", "comfyui", exported=ir_folder)
    with pytest.raises(UsageError, match="batch is 0"):
        dq_deploy.pipeline_folder(bundle, tmp_path / "out", "openvino-genai", exported=ir_folder, batch=0)
    with pytest.raises(UsageError, match="not both"):
        dq_deploy.pipeline_folder(bundle, tmp_path / "out", "openvino-genai", exported=ir_folder, pipeline=ir_folder)
    with pytest.raises(UsageError, match="no such folder"):
        dq_deploy.pipeline_folder(bundle, tmp_path / "out", "openvino-genai", exported=tmp_path / "none")
    with pytest.raises(UsageError, match="does not say which folder"):
        dq_deploy.pipeline_folder(bundle, tmp_path / "out", "openvino-genai")
    with pytest.raises(UsageError, match=r"has no model_index\.json"):
        dq_deploy.pipeline_folder(bundle, tmp_path / "out", "openvino-genai", pipeline=tmp_path)
    ended = cli("pipeline-folder", own.path, "-o", tmp_path / "out", "--for", "openvino-genai", "--exported", ir_folder)
    assert_refused(ended, 3, "has target onnxruntime", "hint: export the checkpoint with --target qdq")


def test_without_the_exporter(tmp_path: Path, ir_folder: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="no 'optimum-nowhere' here") as error:
        dq_deploy.pipeline_folder(
            make_bundle(tmp_path / "b"), tmp_path / "out", "openvino-genai", pipeline=ir_folder, optimum_cli="optimum-nowhere"
        )
    assert "pip install openvino-genai optimum-intel diffusers" in str(error.value.hint)


def test_an_exporter_of_another_environment(tmp_path: Path, ir_folder: Path, cli: Cli) -> None:
    """A script in the place of optimum-cli, called as it is: it gets the pipeline and where to write."""
    script = tmp_path / "optimum-cli"
    script.write_text(
        f'#!/bin/sh\ntest "$1 $2 $3" = "export openvino --model" || exit 9\nfor last; do :; done\ncp -r {ir_folder} "$last"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    bundle = make_bundle(tmp_path / "b")
    command = ("pipeline-folder", bundle.path, "--for", "openvino-genai", "--pipeline", ir_folder, "--optimum-cli")
    ended = cli(*command, script, "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "unet, any batch" in ended.out
    script.write_text("#!/bin/sh\necho of no use >&2\nexit 4\n")
    assert_refused(cli(*command, script, "-o", tmp_path / "again"), 3, "failed with exit code 4", "of no use")
    assert not (tmp_path / "again").exists()
