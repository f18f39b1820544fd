"""``dq-deploy prove``, up to the calls that need a GPU: TensorRT's runtime and a GPU are those of ``tests/engines/tensorrt/fake.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dq_deploy.accuracy import proof as module
from dq_deploy.accuracy.proof import Proof, proof_page, prove
from dq_deploy.artifacts import Artifact
from dq_deploy.artifacts.lineage import origin_of
from dq_deploy.artifacts.reading import read_json
from dq_deploy.engines.layer_report import LayerReport, build_report
from dq_deploy.engines.layer_report.executed import counted, executed_products
from dq_deploy.engines.layer_report.kernels import LayerDump
from dq_deploy.engines.tensorrt import runner as tensorrt_runner
from dq_deploy.engines.tensorrt.inspector import inspected_kernels
from dq_deploy.errors import AccuracyGateError, ArtifactError, EnvironmentProblem, UsageError
from tests.artifacts.test_schemas import published
from tests.command_line import Cli, assert_refused
from tests.engines.tensorrt.fake import HostDevice, engine_of, install
from tests.engines.test_layer_report import kernel, planned_layer
from tests.flow import Flow, altered

PROOFS = Path(__file__).parents[2] / "docs" / "proofs"


def layer(name: str, node: str, dtype: str, **more: Any) -> dict[str, Any]:
    """A layer in the inspector's JSON, of a product in one type."""
    tensor = {"Name": "x", "Dimensions": [-1, 16], "Format/Datatype": f"Row major linear {dtype} format"}
    return {"Name": name, "LayerType": "gemm", "Inputs": [tensor], "Outputs": [tensor], "Constants": [tensor],
            "Metadata": f"[ONNX Layer: {node}]", **more}  # fmt: skip


INSPECTED = json.dumps({"Layers": [layer("k0", "a/MatMul", "INT8"), layer("k1", "b/MatMul", "FP16"), {"Name": "s", "LayerType": "signal"}]})


def planned_report() -> LayerReport:
    """Two products, both planned and built in INT8, and one that no kernel of the inspector names."""
    kernels = tuple(kernel(name, "gemm", "int8 | int8 | fp32", f"{name}/MatMul") for name in "abc")
    dump = LayerDump(kernels=kernels, operators={f"{name}/MatMul": "MatMul" for name in "abc"}, weights_bytes=64)
    return build_report(dump, backend="tensorrt", version="10.9", compute_capability="8.9", planned=[planned_layer(name) for name in "abc"])


def test_what_is_executed_stands_beside_what_was_planned() -> None:
    found = executed_products(planned_report(), inspected_kernels(INSPECTED))
    assert [(one.planned, one.executed, one.kernel, one.as_planned) for one in found] == [
        ("int8", "int8", "k0", True), ("int8", "fp16", "k1", False), ("int8", None, None, False),
    ]  # fmt: skip
    assert counted(found) == {"int8": 1, "fp16": 1, "no kernel": 1}


def test_an_engine_for_a_cpu_is_refused_with_what_judges_it(flow: Flow, tmp_path: Path) -> None:
    engine = engine_of(flow.bundle("qdq"), tmp_path / "engine")
    elsewhere = {**engine.manifest.details, "backend": "openvino", "bundle": "a bundle"}
    with pytest.raises(ArtifactError, match="is an engine of OpenVINO, and prove runs engines on an NVIDIA GPU") as error:
        module._on_a_gpu([Artifact(engine.path, engine.manifest.model_copy(update={"details": elsewhere}))])
    assert str(error.value.hint).startswith("check and bench judge it where it runs; for a GPU build another: ")
    assert str(error.value.hint).endswith("dq-deploy build-engine 'a bundle' -o ENGINE --backend tensorrt-rtx")


def test_weights_of_the_enterprise_library_are_read() -> None:
    text = json.dumps({"Layers": [layer("k", "a/Conv", "INT8", LayerType="CaskConvolution", Weights={"Type": "Int8", "Count": 9})]})
    (found,) = inspected_kernels(text)
    assert [(tensor.dtype, tensor.shape) for tensor in found.constants][-1] == ("int8", (9,))


@pytest.mark.parametrize(("text", "words"), [
    ("not JSON", "answer cannot be read"),
    ("[]", "answer cannot be read"),
    ('{"Layers": ["only", "names"]}', "names kernels and says nothing of them"),
    ('{"Layers": []}', "names kernels and says nothing of them"),
])  # fmt: skip
def test_an_inspector_that_says_nothing(text: str, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        inspected_kernels(text)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr(tensorrt_runner, "CudaDevice", HostDevice)
    monkeypatch.setattr(module, "gpu_compute_capability", lambda: (8, 9))


def engine(bundle: Artifact, path: Path, **more: Any) -> Artifact:
    return engine_of(
        bundle, path, report=planned_report().to_json(), checkpoint_sha256=origin_of(bundle), **{"inspector": INSPECTED, **more}
    )


def test_an_engine_and_its_float_baseline_are_proven(gpu: None, flow: Flow, tmp_path: Path, cli: Cli) -> None:
    ours = engine(flow.bundle("qdq"), tmp_path / "w8a8")
    plain = engine(flow.bundle("float"), tmp_path / "plain", inspector="")
    ended = cli("prove", ours.path, plain.path, "--checkpoint", flow.checkpoint, "-o", tmp_path / "gpu.json", "--batch", "1,2", "--runs", 2,
                "--format", "json")  # fmt: skip
    assert ended.code == 0, ended.err
    proof = Proof.model_validate_json((tmp_path / "gpu.json").read_bytes())
    assert json.loads(ended.out) == json.loads(proof.model_dump_json())
    published("proof").validate(json.loads(ended.out))
    first, second = proof.engines
    assert first.accuracy is not None
    assert first.accuracy.passed
    assert len(first.accuracy.snr_db) == len(flow.bundle("qdq").manifest.timesteps)
    assert (first.bits, first.gpu, first.compute_capability) == ("W8A8", HostDevice.name, "8.9")
    assert (first.kernels, first.planned_kernels, first.cuda_graphs) == (2, 3, "on")
    assert [(time.batch, time.device_median_ms) for time in first.times] == [(1, 2.0), (2, 2.0)]
    assert (second.accuracy, second.bits, second.kernels) == (None, None, None)
    assert second.inspected is not None
    page = (tmp_path / "gpu.md").read_text()
    assert "| w8a8 | W8A8 | passed |" in page
    assert "1 INT8, 1 FP16, 1 NO KERNEL | 1 of 3 | 2 (3 planned) |" in page
    assert "| w8a8 | `b/MatMul` | int8 | fp16 | `k1` |" in page
    assert "| plain | float | float | – | not known: the engine inspector" in page
    assert str(tmp_path) not in page + (tmp_path / "gpu.json").read_text()


def test_an_engine_that_is_wrong_fails_and_the_files_say_so(gpu: None, flow: Flow, tmp_path: Path, cli: Cli) -> None:
    def negated(model: Any) -> None:
        last = next(node for node in model.graph.node if "out_sample" in node.output)
        last.output[0] = "before"
        model.graph.node.append(type(last)(op_type="Neg", input=["before"], output=["out_sample"], name="negated"))

    broken = altered(flow.bundle("qdq"), tmp_path / "broken", negated)
    wrong = engine(broken, tmp_path / "wrong")
    ended = cli("prove", wrong.path, "--checkpoint", flow.checkpoint, "-o", tmp_path / "gpu.json", "--runs", 1)
    assert ended.code == 6
    assert "wrong fails the check: tensorrt, timestep" in ended.err
    proof = Proof.model_validate_json((tmp_path / "gpu.json").read_bytes())
    assert not proof
    assert "| wrong | W8A8 | **failed** |" in proof_page(proof)
    with pytest.raises(AccuracyGateError):
        proof.enforce()


def test_checkpoints_must_be_those_of_the_engines(gpu: None, flow: Flow, tmp_path: Path) -> None:
    ours, plain = engine(flow.bundle("qdq"), tmp_path / "ours"), engine(flow.bundle("float"), tmp_path / "plain")
    with pytest.raises(UsageError, match=r"no checkpoint was given that .*ours came from\n.*--checkpoint"):
        prove([ours.path], [])
    with pytest.raises(UsageError, match=r"none of the engines came from .*checkpoint"):
        prove([plain.path], [flow.checkpoint])
    with pytest.raises(UsageError, match="no engine was given"):
        prove([], [])


def test_without_a_gpu_it_says_what_is_needed(flow: Flow, tmp_path: Path, cli: Cli) -> None:
    ours = engine(flow.bundle("qdq"), tmp_path / "ours")
    ended = cli("prove", ours.path, "--checkpoint", flow.checkpoint, "-o", tmp_path / "gpu.json")
    assert_refused(ended, 4, "none can be used here", "compute capability 8.9", "torch with CUDA", "tensorrt==10.9.0.34")
    assert not (tmp_path / "gpu.json").exists()
    with pytest.raises(EnvironmentProblem):
        prove([ours.path], [flow.checkpoint])


@pytest.mark.parametrize(("name", "words"), [("gpu.txt", "does not end in .json"), ("", "is a folder")])
def test_outputs_that_cannot_be(flow: Flow, tmp_path: Path, cli: Cli, name: str, words: str) -> None:
    ours = engine(flow.bundle("qdq"), tmp_path / "ours")
    ended = cli("prove", ours.path, "--checkpoint", flow.checkpoint, "-o", tmp_path / name if name else tmp_path)
    assert ended.code == 2
    assert words in ended.err or "does not end in .json" in ended.err


def test_proofs_that_were_sent_fit_the_schema() -> None:
    for file in PROOFS.glob("*.json"):
        assert Proof.model_validate(read_json(file, "a proof"))
        assert file.with_suffix(".md").is_file()
    assert (PROOFS / "README.md").is_file()
