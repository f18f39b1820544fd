from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file

from dq_deploy.errors import ArtifactError
from dq_deploy.quantization.checkpoint import Checkpoint, integer_tensors, load_checkpoint
from dq_deploy.quantization.graph.modules import named_quantizers
from dq_deploy.quantization.output_bias import TARGET as OUTPUT_BIAS
from dq_deploy.quantization.table_rows import parts
from dq_deploy.quantization.weights import QuantizedWeight
from tests.tiny import SHAPE, PlainUNet, change_tensors, make_checkpoint, resealed


@pytest.fixture
def copy(plain_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_checkpoint.artifact.path, tmp_path / "copy"))


@pytest.fixture(scope="module")
def w4_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 4 bits; read it, do not change it."""
    return make_checkpoint(PlainUNet(), tmp_path_factory.mktemp("w4") / "checkpoint", preset="w4a4").artifact.path


def change_graph(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    graph = json.loads((path / "graph.json").read_text())
    change(graph)
    (path / "graph.json").write_text(json.dumps(graph))
    return resealed(path)


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (6, 2)])
def test_loading_gives_back_the_same_integers_and_outputs(bits: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dq_deploy.quantization import pipeline

    kept = []
    write = pipeline.write_checkpoint
    monkeypatch.setattr(
        pipeline, "write_checkpoint", lambda folder, model, reference: (kept.append(model), write(folder, model, reference))
    )
    loaded = make_checkpoint(
        PlainUNet(), tmp_path / "checkpoint", activations="per-timestep", dilation="symmetric", weight_bits=bits[0], activation_bits=bits[1]
    )
    (frozen,) = kept
    before, after = integer_tensors(frozen), integer_tensors(loaded.model)
    assert before.keys() == after.keys()
    tables = {f"{name}.{part}" for name in loaded.quantizers for part in ("scale", "zero_point")} | {f"{OUTPUT_BIAS}.table"}
    stored = {name: tensor[:: parts(len(loaded.timesteps))] if name in tables else tensor for name, tensor in after.items()}
    assert all(torch.equal(before[name], stored[name]) and before[name].dtype == stored[name].dtype for name in before)
    x, t = torch.randn(5, *SHAPE), torch.tensor([0.0, 250.0, 500.0, 750.0, 999.0])
    assert torch.equal(loaded.model(x, t), frozen(x, t))
    limit = 2 ** (bits[0] - 1) - 1
    codes = {n: layer.frozen[0] for n, layer in loaded.layers.items() if isinstance(layer, QuantizedWeight) and layer.frozen}
    assert all(c.dtype == torch.int8 and int(c.abs().max()) <= (127 if n == "last" else limit) for n, c in codes.items())


def test_the_tables_have_a_row_for_each_timestep(plain_checkpoint: Checkpoint) -> None:
    assert plain_checkpoint.timesteps.tolist() == [0, 250, 500, 750]
    for _, quantizer in named_quantizers(plain_checkpoint.model):
        assert quantizer.scale_table().shape == quantizer.zero_point_table().shape == (3 * parts(4) + 1,)
        assert not any(p.requires_grad for p in quantizer.parameters())


def test_the_reference_is_held_out_and_whole(plain_checkpoint: Checkpoint) -> None:
    reference = plain_checkpoint.reference()
    assert torch.equal(reference.timesteps, plain_checkpoint.timesteps)
    with torch.no_grad():
        expected = PlainUNet()(reference.samples[2], reference.timesteps[2].expand(2))
    torch.testing.assert_close(reference.outputs[2], expected, rtol=1e-4, atol=1e-5)


def test_changed_files_are_found_by_their_hash(copy: Path) -> None:
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match="sha256"):
        load_checkpoint(copy)


def _nan(t: dict[str, torch.Tensor]) -> None:
    t["down.input.scale"][1] = torch.nan


def _zero(t: dict[str, torch.Tensor]) -> None:
    t["down.input.scale"][2] = 0.0


def _negative(t: dict[str, torch.Tensor]) -> None:
    t["down.input.scale"][2] = -0.1


def _subnormal(t: dict[str, torch.Tensor]) -> None:
    t["down.input.scale"][2] = 1e-39  # 1/s would be infinite


def _subnormal_weight_scale(t: dict[str, torch.Tensor]) -> None:
    t["down.weight.scale"][0] = 1e-39


def _infinite_weight_scale(t: dict[str, torch.Tensor]) -> None:
    t["down.weight.scale"][0] = torch.inf


def _short(t: dict[str, torch.Tensor]) -> None:
    t["down.input.scale"] = t["down.input.scale"][:3].clone()


def _short_zero_points(t: dict[str, torch.Tensor]) -> None:
    t["down.input.zero_point"] = t["down.input.zero_point"][:1].clone()


def _missing(t: dict[str, torch.Tensor]) -> None:
    del t["down.weight.codes"]


def _float_codes(t: dict[str, torch.Tensor]) -> None:
    t["down.weight.codes"] = t["down.weight.codes"].float()


def _weight_scale(t: dict[str, torch.Tensor]) -> None:
    t["down.weight.scale"][0] = 0.0


def _dilation(t: dict[str, torch.Tensor]) -> None:
    t["down.input.dilation"] = t["down.input.dilation"][:2].clone()


def _zero_dilation(t: dict[str, torch.Tensor]) -> None:
    t["down.input.dilation"][0] = 0.0


def _bias(t: dict[str, torch.Tensor]) -> None:
    t["grouped.bias"] = t["grouped.bias"][:3].clone()


@pytest.mark.parametrize("change", [_nan, _zero, _negative, _short, _short_zero_points, _missing, _float_codes, _weight_scale, _dilation,
                                    _zero_dilation, _bias, _subnormal, _subnormal_weight_scale, _infinite_weight_scale])  # fmt: skip
def test_tampered_tensors_are_refused(copy: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    with pytest.raises(ArtifactError):
        load_checkpoint(change_tensors(copy, change))


def test_a_code_beyond_its_bits_is_refused(copy: Path) -> None:
    def widen(graph: dict[str, Any]) -> None:
        graph["layers"]["down"]["bits"] = 6

    with pytest.raises(ArtifactError, match="down.*6 bits"):
        load_checkpoint(change_graph(copy, widen))


def test_narrow_codes_take_half_a_byte_each(w4_checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(w4_checkpoint)
    stored = load_file(w4_checkpoint / "model.safetensors")
    codes = {name: layer.frozen[0] for name, layer in loaded.layers.items() if isinstance(layer, QuantizedWeight) and layer.frozen}
    narrow = {name for name, layer in loaded.layers.items() if isinstance(layer, QuantizedWeight) and layer.bits == 4}
    assert narrow
    for name, expected in codes.items():
        if name in narrow:
            packed = stored[f"{name}.weight.packed_codes"]
            assert f"{name}.weight.codes" not in stored
            assert packed.nbytes == math.ceil(expected.numel() / 2)
            # The bytes are those of ONNX's INT4.
            assert packed.numpy().tobytes() == ir.tensor(expected.numpy().astype(ir.DataType.INT4.numpy())).tobytes()
        else:
            assert torch.equal(stored[f"{name}.weight.codes"], expected)

    # As checkpoints were before: a byte each.
    older = Path(shutil.copytree(w4_checkpoint, tmp_path / "older"))
    change_graph(older, lambda graph: [layer.pop("shape", None) for layer in graph["layers"].values()] and None)

    def unpack(tensors: dict[str, torch.Tensor]) -> None:
        for name in narrow:
            del tensors[f"{name}.weight.packed_codes"]
            tensors[f"{name}.weight.codes"] = codes[name]

    change_tensors(older, unpack)
    before, after = integer_tensors(loaded.model), integer_tensors(load_checkpoint(older).model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("shape", [[4, 4], [], [-1], [0], ["a"], "ab", 3])
def test_packed_codes_of_another_shape_are_refused(w4_checkpoint: Path, tmp_path: Path, shape: Any) -> None:
    copy = Path(shutil.copytree(w4_checkpoint, tmp_path / "copy"))

    def change(graph: dict[str, Any]) -> None:
        graph["layers"]["down"]["shape"] = shape

    with pytest.raises(ArtifactError):
        load_checkpoint(change_graph(copy, change))


def test_packed_codes_of_another_type_are_refused(w4_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(w4_checkpoint, tmp_path / "copy"))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["down.weight.packed_codes"] = tensors["down.weight.packed_codes"].float()

    with pytest.raises(ArtifactError, match="packed codes"):
        load_checkpoint(change_tensors(copy, change))


@pytest.mark.parametrize("target", ["os.system", "aten.nothing.default", "operator.attrgetter", "aten.add", "builtins.eval", ""])
def test_an_operator_that_is_not_allowed_is_refused(copy: Path, target: str) -> None:
    def change(graph: dict[str, Any]) -> None:
        next(n for n in graph["nodes"] if n["op"] == "call_function")["target"] = target

    with pytest.raises(ArtifactError, match="graph.json"):
        load_checkpoint(change_graph(copy, change))


@pytest.mark.parametrize("op", ["call_method", "call_module", "nonsense"])
def test_another_kind_of_node_is_refused(copy: Path, op: str) -> None:
    def change(graph: dict[str, Any]) -> None:
        next(n for n in graph["nodes"] if n["op"] == "call_function").update(op=op, target="nowhere")

    with pytest.raises(ArtifactError):
        load_checkpoint(change_graph(copy, change))


@pytest.mark.parametrize("value", [{"node": "nowhere"}, {"unknown": 1}, {"torch": "load"}, {"torch": "save"}, {}])
def test_a_malformed_argument_is_refused(copy: Path, value: Any) -> None:
    def change(graph: dict[str, Any]) -> None:
        next(n for n in graph["nodes"] if n["op"] == "call_function")["args"][0] = value

    with pytest.raises(ArtifactError):
        load_checkpoint(change_graph(copy, change))


def test_a_graph_that_is_no_json_is_refused(copy: Path) -> None:
    (copy / "graph.json").write_text("{")
    with pytest.raises(ArtifactError):
        load_checkpoint(resealed(copy))
