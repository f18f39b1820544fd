"""The lint on the catalogue of patterns, rule by rule, and on files that are not what they should be.

What the engines do with the same patterns is tested in tests/benchmarks/test_patterns.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.patterns import activations, float8
from benchmarks.patterns.catalogue import PATTERNS, Pattern
from benchmarks.patterns.sketch import KERNEL, Sketch, images
from dq_deploy.artifacts import Artifact, Manifest, create_artifact, open_artifact
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters.lint import RULES, LintResult, lint
from dq_deploy.exporters.lint.rule import Rule
from tests.engines import graphs


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def parsed(nodes: str) -> onnx.ModelProto:
    """A graph of floats from ``sample`` to ``y``."""
    text = f'<ir_version: 10, opset_import: ["": 21]> g (float[1, 4] sample) => (float[1, 4] y) {{ {nodes} }}'
    return onnx.parser.parse_model(text)


def rules(result: LintResult) -> set[str]:
    return {finding.rule for finding in result.findings}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=list(PATTERNS))
def test_every_pattern_gets_its_findings_and_no_others(pattern: Pattern, tmp_path: Path) -> None:
    result = lint(saved(pattern.build(), tmp_path), target=pattern.target)
    assert rules(result) == set(pattern.lint)
    severities = {rule.id: rule.severity for rule in RULES}
    assert bool(result) == all(severities[name] == "warning" for name in pattern.lint)
    for finding in result.findings:
        assert finding.message
        assert finding.hint
        assert finding.node or finding.rule in ("new-opset", "invalid-onnx")


def test_every_rule_has_a_pattern_and_says_how_it_is_known() -> None:
    flagged = {name for pattern in PATTERNS.values() for name in pattern.lint}
    assert flagged == {rule.id for rule in RULES} - {"external-data"}
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.find.__doc__


NORMAL = 2.0**-126
# By rule: a graph that breaks it alone, and the nearest one that does not.
PAIRS: dict[str, tuple[str, str | Callable[[], onnx.ModelProto]]] = {
    "computed-scale-conv": ("conv-computed-scale", "conv-computed-quantize"),
    "computed-scale-matmul": ("matmul-computed-scale", "matmul-static"),
    "zero-point": ("zero-point", "matmul-static"),
    "codebook-moved": ("matmul-codebook-before", "matmul-codebook"),
    "codebook-unsigned": ("matmul-codebook-unsigned", "matmul-codebook"),
    "fp8-opset": ("matmul-fp8-opset-18", partial(float8.matmul_fp8, opset=19)),
    "fp8-half-scale": ("matmul-fp8-half-scale", "matmul-fp8"),
    "fp8-unsaturated": ("matmul-fp8-unsaturated", partial(float8.matmul_fp8, saturate=1)),
    "fp4-opset": ("matmul-fp4-opset-21", "matmul-fp4"),
    "fp4-convolution": ("conv-fp4", "matmul-fp4"),
    "fp4-rank": ("matmul-fp4-rank-4", "matmul-fp4-per-timestep"),
    "fp4-global-scale": ("matmul-fp4-computed-global-scale", "matmul-fp4-per-timestep"),
    "code-type": ("codes-uint8-by-default", "codes-by-attribute"),
    "no-such-operator": ("fourier-transform", partial(parsed, "y = Softmax(sample)")),
    "boolean-where": ("boolean-where", partial(parsed, "c = Greater(sample, sample) y = Where(c, sample, sample)")),
    "zero-scale": ("scale-zero", partial(activations.matmul_static, scale=NORMAL)),
    "negative-scale": ("scale-negative", "matmul-static"),
    "non-finite-scale": ("scale-infinite", partial(activations.matmul_static, scale=float(np.finfo(np.float32).max))),
    "subnormal-scale": ("scale-subnormal", partial(activations.matmul_static, scale=NORMAL)),
    "per-channel-activation": ("conv-per-channel-activation", "conv-dilated"),
    "float-activation": ("conv-activation-changed", "conv-padded"),
    "weight-scale-axis": ("conv-weight-scale-axis", "conv-static"),
    "block-wise-int8-activation": ("matmul-int4-blocks-int8", "matmul-int4-blocks-fp16"),
    "int4-conv-int8-activation": ("conv-int4-int8", "conv-int4-fp16"),
    "int4-per-tensor-int8-activation": ("matmul-int4-per-tensor-int8", "matmul-int4-int8"),
    "int4-requantize-uncast": ("conv-int4-requantized-fp32-cast", "conv-int4-requantized-one-cast"),
    "int4-requantize-matmul": ("matmul-int4-requantized", "conv-int4-requantized"),
    "int4-cast": ("matmul-int4-cast", "matmul-int4-int8"),
    "int4-opset": ("matmul-int4-opset-20", "matmul-int4-int8"),
    "new-opset": ("opset-27", partial(activations.matmul_transposed, unsigned=True, opset=26)),
    "invalid-onnx": ("opset-10", "opset-13"),
    "moved-int8": ("matmul-transposed-int8", "matmul-transposed-opset-19"),
    "bfloat16": ("matmul-bfloat16", "matmul-gathered-uint8"),
    "shared-weight": ("shared-weight-codes", "shared-gathered-uint8"),
    "float-convolution": ("conv-gathered", "conv-gathered-output"),
    "convolution-bias": ("conv-gathered-bias", "conv-gathered-output"),
    "shared-int8": ("shared-gathered-int8", "shared-gathered-uint8"),
    "scale-per-sample": ("scale-per-sample", "matmul-gathered-int8"),
    "convolution-integer": ("conv-integer", "conv-gathered-output"),
}


@pytest.mark.parametrize("rule", RULES, ids=[rule.id for rule in RULES])
def test_a_rule_tells_its_graph_from_the_nearest_good_one(rule: Rule, tmp_path: Path) -> None:
    if rule.id == "external-data":
        return  # which has its own tests below
    broken, good = PAIRS[rule.id]
    for target in rule.targets:
        assert rule.id in rules(lint(saved(PATTERNS[broken].build(), tmp_path), target=target))
    target = PATTERNS[broken].target
    assert rules(lint(saved(PATTERNS[broken].build(), tmp_path), target=target)) == {rule.id}
    model = PATTERNS[good].build() if isinstance(good, str) else good()
    assert rules(lint(saved(model, tmp_path), target=target)) == set()


def test_a_table_of_the_network_is_no_scale_table_of_a_bundle(tmp_path: Path) -> None:
    """The manifest names those; of a bare file the readers are all that there is to go by."""
    graph = graphs.Graph()
    y = graph.conv("sample", "c", 8, 8)
    sigmas = graph.constant("sigmas", np.array([0.0, 1.0, 2.0, 3.0], np.float32).reshape(-1, 1, 1, 1))
    y = graph.node("Div", [y, graph.node("Gather", [sigmas, graph.row()], "sigmas/Gather")], "divided/Div")
    bundle = graphs.make_bundle(tmp_path / "bundle", graph, y, ["batch", 8, 8, 8])
    assert lint(bundle).findings == ()
    assert {(f.rule, f.node) for f in lint(bundle.path / "model.onnx").findings} == {("zero-scale", "sigmas/Gather")}


def test_all_offenders_at_once_with_values_and_hints(tmp_path: Path) -> None:
    s = images()
    pair = (s.constant("bad.scale", np.float32(0)), s.constant("bad.zero_point", np.int8(7)))
    y = s.conv(s.qdq(s.sample, pair, "bad"), s.weight(KERNEL, 1))
    y = s.op("Conv", s.qdq(y, s.computed(), "worse"), s.weight(KERNEL, 0, "second"), name="second/Conv", pads=[1, 1, 1, 1])
    result = lint(saved(s.model(y), tmp_path))
    assert {(f.rule, f.node) for f in result.errors} == {
        ("zero-scale", "bad/Q"), ("zero-scale", "bad/DQ"), ("zero-point", "bad/Q"), ("zero-point", "bad/DQ"),
        ("weight-scale-axis", "layer/Conv"), ("computed-scale-conv", "second/Conv"),
    }  # fmt: skip
    with pytest.raises(ArtifactError) as caught:
        result.enforce()
    text = str(caught.value)
    assert "is not fit for target qdq, 6 errors:" in text
    assert "zero-point: bad/Q: its zero-point is 7" in text
    assert "computed-scale-conv: keep the Q/DQ scale constant (1)" in (caught.value.hint or "")
    assert next(f for f in result.errors if f.rule == "zero-point").values == {"zero_points": [7]}


def test_a_good_graph_passes_and_enforces_nothing(tmp_path: Path) -> None:
    result = lint(saved(PATTERNS["conv-asymmetric"].build(), tmp_path))
    assert result
    assert result.findings == ()
    result.enforce()


def test_the_module_path_comes_from_torchs_metadata(tmp_path: Path) -> None:
    model = PATTERNS["conv-computed-scale"].build()
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'down_blocks.0', 'down_blocks.0.conv1', 'conv2d']")
    (finding,) = lint(saved(model, tmp_path)).findings
    assert finding.module == "down_blocks.0.conv1"
    node.metadata_props[0].value = "__import__('os')"
    assert lint(saved(model, tmp_path)).findings[0].module is None


def test_a_bundles_findings_name_layer_and_timestep(tmp_path: Path) -> None:
    (finding,) = lint(graphs.computed_scale(tmp_path / "computed", "Conv")).findings
    assert (finding.node, finding.module) == ("layer/Conv", "layer")
    bad = graphs.Graph()
    y = bad.conv("sample", "c", 8, 8)
    bad.constant("c.scale", np.array([0.1, np.nan, 0.1, 0.0], np.float32).reshape(-1, 1, 1, 1))
    found = lint(graphs.make_bundle(tmp_path / "table", bad, y, ["batch", 8, 8, 8])).findings
    assert {(f.rule, f.node, f.module) for f in found} == {
        ("zero-scale", "c.scale/Gather", "c"), ("non-finite-scale", "c.scale/Gather", "c")
    }  # fmt: skip
    assert "1 of 4 entries of its table of scales (FLOAT) are 0: [3] (timestep 3) = 0" in found[0].message
    assert "[1] (timestep 1) = nan" in found[1].message


def test_the_bundles_target_decides_unless_another_is_asked_for(tmp_path: Path) -> None:
    bundle = graphs.computed_scale(tmp_path / "bundle", "MatMul")
    assert rules(lint(bundle)) == {"computed-scale-matmul"}
    assert lint(bundle, target="onnxruntime").findings == ()
    with pytest.raises(UsageError, match="unknown target 'coreml'\ntargets: qdq, onnxruntime"):
        lint(bundle, target="coreml")


def test_a_scale_computed_inside_a_function_or_a_subgraph_is_found(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21, "local": 1]>
    main (float[1, 4, 8, 8] sample, float scale, bool flag) => (float[1, 4, 8, 8] out)
    <float one = {1.0}, int8 zero = {0}>
    {
        weight = local.quantized (sample, scale, zero)
        out = If (flag) <
            then_branch = then () => (float[1, 4, 8, 8] y) {
                q = QuantizeLinear (sample, scale, zero)
                d = DequantizeLinear (q, scale, zero)
                y = Relu (d)
            },
            else_branch = else () => (float[1, 4, 8, 8] z) {
                p = QuantizeLinear (weight, one, zero)
                e = DequantizeLinear (p, scale, zero)
                [inner] z = MatMul (e, e)
            }>
    }
    <domain: "local", opset_import: ["": 21]>
    quantized (x, s, z) => (y) {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        [called] y = MatMul (d, d)
    }"""
    file = saved(onnx.parser.parse_model(text), tmp_path)
    found = [f for f in lint(file).findings if f.rule == "computed-scale-matmul"]
    assert len(found) == 2
    assert any("inner" in f.node for f in found)


def test_a_weight_that_is_quantized_in_the_graph_is_no_activation(tmp_path: Path) -> None:
    s = images()
    x = s.qdq(s.sample, s.fixed())
    weight = s.qdq(s.float_weight("layer.weight", *KERNEL), s.weight_pair(KERNEL[0]), "weight", axis=0)
    assert lint(saved(s.model(s.conv(x, weight)), tmp_path)).findings == ()


def external(location: str) -> onnx.ModelProto:
    """A graph whose weight says that it lies in ``location``."""
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("sample", "out_sample")]
    node = helper.make_node("MatMul", ["sample", "weight"], ["out_sample"], name="layer/MatMul")
    graph = helper.make_graph([node], "g", value[:1], value[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("/etc/hostname", "is absolute"),
        ("C:\\data", "is absolute"),
        ("../secret", "leaves the folder"),
        ("a/../../secret", "leaves the folder"),
        ("a\\..\\..\\secret", "leaves the folder"),
        ("link", "leaves the folder through a link"),
        ("missing.data", "is missing"),
    ],
)
@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
def test_external_data_from_elsewhere(tmp_path: Path, location: str, problem: str, target: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (finding,) = lint(saved(external(location), folder), target=target).findings
    assert (finding.rule, finding.node, finding.severity) == ("external-data", "weight", "error")
    assert finding.message == f"external data '{location}' of tensor 'weight' {problem}"


def test_external_data_in_the_folder_is_fine_and_foreign_scales_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "weights.data").write_bytes(bytes(64))
    assert lint(saved(external("weights.data"), tmp_path)).findings == ()
    model = PATTERNS["matmul-static"].build()
    scale = next(t for t in model.graph.initializer if t.name == "layer.weight.scale")
    scale.ClearField("raw_data")
    scale.data_location = TensorProto.EXTERNAL
    scale.external_data.add(key="location", value="/proc/self/mem")
    assert rules(lint(saved(model, tmp_path))) == {"external-data"}


def test_a_large_external_weight_is_not_read(tmp_path: Path) -> None:
    bundle = graphs.network(tmp_path / "bundle", external=True)
    assert lint(bundle).findings == ()


def test_a_value_that_is_made_twice_is_no_graph(tmp_path: Path) -> None:
    model = PATTERNS["conv-static"].build()
    model.graph.node.append(model.graph.node[0])
    with pytest.raises(ArtifactError, match="is not an ONNX graph: .*redeclared"):
        lint(saved(model, tmp_path))


@pytest.mark.parametrize("content", [b"", b"\xff\x00 no protobuf", b"ftrt an engine by mistake"])
def test_no_graph_at_all(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="is not an ONNX graph"):
        lint(file)
    with pytest.raises(UsageError, match="no such path"):
        lint(tmp_path / "none")


def test_other_artefacts_are_refused(tmp_path: Path) -> None:
    with create_artifact(tmp_path / "engine", Manifest(kind="engine", model="m")):
        pass
    with pytest.raises(ArtifactError, match="is an engine, and a bundle is needed here"):
        lint(tmp_path / "engine")


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return open_artifact(graphs.computed_scale(tmp_path_factory.mktemp("bundle") / "b", "Conv").path, "bundle")


def test_a_graph_that_another_library_wrote(tmp_path: Path, computed: Artifact) -> None:
    """onnx_ir writes and reads what onnx.helper wrote: the findings do not depend on it."""
    model = ir.load(computed.path / "model.onnx")
    ir.save(model, tmp_path / "again.onnx")
    assert rules(lint(tmp_path / "again.onnx")) == rules(lint(computed))


def test_a_bias_on_an_int4_weight_pattern_of_the_design(tmp_path: Path) -> None:
    """Both INT4 patterns that the exporters write are clean, in the per-timestep form too."""
    s = Sketch(16, 64)
    x, scale = s.scaled(s.sample)
    weight = s.op("DequantizeLinear", s.int4((64, 64)), s.weight_pair(64)[0], name="layer/DequantizeWeight", axis=1)
    y = s.op("Mul", s.op("MatMul", s.qdq(x, s.unit()), weight, name="layer/MatMul"), scale, name="layer/Rescale")
    assert lint(saved(s.model(y), tmp_path)).findings == ()
