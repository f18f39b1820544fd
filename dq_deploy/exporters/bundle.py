"""Checkpoint → bundle: a folder with ``model.onnx`` (and its external data) and the manifest that maps layers to graph values."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, cast

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from ..artifacts import Artifact, Manifest, check_output, create_artifact
from ..artifacts.details import BundleDetails, Target
from ..errors import ArtifactError, UsageError
from ..formats.fp4 import FP4_DOMAIN, FP4_IR_VERSION, FP4_OPSET
from ..formats.target import TARGETS, target_name
from ..progress import Progress, silent
from ..quantization.bits.budget import WeightBudget
from ..quantization.checkpoint import Checkpoint, load_checkpoint
from ..quantization.float_source import FloatModel, load_float
from ..quantization.output_bias import output_bias
from ..quantization.running.ambient import default_torch
from ..quantization.weights import QuantizedWeight
from ..quantization.width_choice import choose_widths
from ..quantization.widths import sliced
from .attention import ATTENTION, Attention, float_attention
from .convolutions import CONVOLUTIONS, Convolutions, float_convolutions, in_float
from .float16 import around_constants, describe, float_values, too_large
from .group_norm import group_norms_by_instance
from .lower import Sites, lower
from .onnxruntime_target import OnnxRuntimeTarget
from .precision import DTYPES, lower_precision
from .ranges import largest_values
from .recast import unpack_together
from .skeleton import to_onnx
from .tensorrt_target import TensorRTTarget
from .weights import storage_of

_TARGETS: dict[str, type[TensorRTTarget | OnnxRuntimeTarget]] = {"qdq": TensorRTTarget, "onnxruntime": OnnxRuntimeTarget}
_DEFAULT_DTYPE = {"qdq": "fp16", "onnxruntime": "fp32"}
_CARRIED = ("component", "pipeline_class", "model_config", "sample_shape", "source", "conditions", "picture_size", "pictures", "call",
            "width", "width_choice", "free", "calibrated_sizes")  # fmt: skip
BF16_OPSET = 22  # 21 has no bfloat16 for Conv and InstanceNormalization; 22 adds the type and changes nothing else here
_EXTERNAL_BYTES = 1 << 20  # smaller initializers stay in the protobuf, where tools show them
WEIGHT_STORAGE = ("auto", "int8")
WeightStorage = Literal["auto", "int8"]


@default_torch()
def export(checkpoint: str | Path | Artifact, output: str | Path, *, target: Target, dtype: str | None = None,
           weight_storage: WeightStorage = "auto", weight_bits: int | None = None, weight_budget: str | None = None,
           attention: Attention = "auto", convolutions: Convolutions | None = None,
           float: bool = False, force: bool = False, progress: Progress = silent) -> Artifact[BundleDetails]:  # fmt: skip  # noqa: A002
    """Export a checkpoint as an ONNX bundle, opset 21 (22 for bf16), dynamic batch.

    ``dtype`` (fp32, fp16, bf16) is the type of what is not quantized: by default fp16 for ``qdq`` and fp32 for ``onnxruntime``.
    ``weight_storage``: "auto" stores weights of 4 bits as INT4, two to a byte, and of fewer as bit planes, in the ``qdq`` target; "int8"
    gives every weight a byte, for OpenVINO, which multiplies an INT4 MatMul in float, or for fewer kernels.
    ``weight_bits``, of a checkpoint of several widths (``quantize`` with ``matryoshka``): the one to export; by default the 8 bits.
    ``weight_budget``, of such a checkpoint in target ``qdq`` with storage "auto": "1.6MB", or "0.18x" of the float32 weights. Each layer
    gets a width, so that the weights take no more and lose the least (quantization/width_choice.py).
    ``attention``: "auto" quantizes the products of attention (q·kᵀ and P·v), and each engine that is built from the bundle takes what is
    best for it: TensorRT and TensorRT-RTX one kernel of floats wherever they have one, OpenVINO INT8. "int8" keeps them quantized there
    too, "float" leaves them unquantized, in ``dtype``, for every engine; docs/decisions/attention.md says when.
    ``convolutions``, of target ``onnxruntime``: "auto" (the default) leaves those in float, activations and all, that its integer kernels
    would make slower (docs/engines.md); "integer" leaves none, "float" all of them, for a CPU without VNNI.
    ``float`` exports the unquantized model that the checkpoint came from, as the baseline (default fp32).

    Raises UsageError or ArtifactError.
    """
    target = cast("Target", target_name(target))
    dtype = dtype or ("fp32" if float else _DEFAULT_DTYPE.get(target, ""))
    _check_choices(target, dtype, weight_storage, attention, convolutions)
    _check_width_choices(target, weight_storage, weight_bits, weight_budget, float=float)
    path = checkpoint.path if isinstance(checkpoint, Artifact) else checkpoint
    check_output(Path(output), force=force, source=Path(path))
    with progress("export", 10) as advance:  # tenths of what a large model takes
        loaded = load_checkpoint(path)
        choices: dict[str, Any] = {"attention": "float"}
        if weight_bits is not None:
            loaded = sliced(loaded, weight_bits)
        elif weight_budget is not None:
            loaded = sliced(loaded, *choose_widths(loaded, weight_budget, progress))
        int4 = weight_storage == "auto" and not float and (target == "qdq" or _weight_only(loaded))
        if not float:
            loaded, choices = _with_choices(loaded, target, attention, convolutions)
        advance(1, "capturing")
        model, sites = _float_graph(load_float(loaded)) if float else _integer_graph(loaded, target, int4=int4)
        advance(7, "lowering")
        kept = _complete(model, loaded, target, dtype)
        kind = {"target": target, "dtype": dtype, "float": float, **choices, **({"kept_fp32": kept} if kept else {})}
        kind |= {"weight_storage": weight_storage} if weight_storage != "auto" else {}
        manifest = _manifest(loaded, model, sites, kind, int4=int4)
        advance(1, "writing")
        with create_artifact(output, manifest, force=force) as folder:
            write_model(model, folder / "model.onnx")
        advance(1, "done")
    return Artifact(Path(output), manifest)


def _check_choices(target: str, dtype: str, weight_storage: str, attention: str, convolutions: str | None) -> None:
    """Raises UsageError for a name that is none of its kind's, and for a choice that the target does not have."""
    for what, plural, value, known in (
        ("target", "targets", target, TARGETS),
        ("dtype", "types", dtype, DTYPES),
        ("weight storage", "storages", weight_storage, WEIGHT_STORAGE),
        ("attention", "choices", attention, ATTENTION),
        ("choice of convolutions", "choices", convolutions, (None, *CONVOLUTIONS)),
    ):
        if value not in known:
            raise UsageError(f"unknown {what} '{value}'", f"{plural}: {', '.join(filter(None, known))}")
    if convolutions is not None and target != "onnxruntime":
        raise UsageError(f"convolutions '{convolutions}' is a choice for target onnxruntime, and the target is {target}", "leave it out")


def _check_width_choices(target: str, weight_storage: str, bits: int | None, budget: str | None, *, float: bool) -> None:  # noqa: A002
    """Raises UsageError for a width beside a budget, for either of the float model, and for a budget that is none or chooses nothing."""
    given = [name for name, value in (("--weight-bits", bits), ("--weight-budget", budget)) if value is not None]
    if float and given:
        raise UsageError("the float model has no weights of integer bits", f"leave out {given[0]}, or --float")
    if len(given) > 1:
        raise UsageError("--weight-bits gives all layers one width, and --weight-budget chooses one for each", "leave one of them out")
    if budget is not None:
        WeightBudget.parse(budget, "--weight-budget", snr=False)
    if budget is not None and (target, weight_storage) != ("qdq", "auto"):
        where = f"target {target}" if target != "qdq" else f"weight storage {weight_storage}"
        raise UsageError(f"{where} gives every weight a byte, and no width takes fewer bytes than another",
                         "export with --target qdq and --weight-storage auto, or choose a width: --weight-bits 8")  # fmt: skip


def _with_choices(checkpoint: Checkpoint, target: Target, attention: Attention,
                  convolutions: Convolutions | None) -> tuple[Checkpoint, dict[str, Any]]:  # fmt: skip
    """The checkpoint with what an export leaves in float beside it, and the manifest's account of that.

    Raises UsageError for a choice that its codes do not have.
    """
    floats = _float_codes(checkpoint)
    if floats and target == "onnxruntime":
        raise UsageError(
            f"target onnxruntime multiplies integers, and the codes of {checkpoint.artifact.path} are {' and '.join(sorted(floats))}",
            "export with --target qdq, which ONNX Runtime runs with products in float; for speed on a CPU quantize with --preset w8a8",
        )
    if floats and attention == "int8":
        raise UsageError(
            f"attention int8 is asked for, and beside {' and '.join(sorted(floats))} codes attention stays in float",
            "leave it out: engines run it as one kernel",
        )
    weight_only = _weight_only(checkpoint)
    choices: dict[str, Any] = {"attention": "float" if weight_only or floats else attention}
    if choices["attention"] == "float":
        checkpoint = float_attention(checkpoint)
    if target == "onnxruntime" and not weight_only:
        names = in_float(checkpoint, convolutions or "auto")
        checkpoint = float_convolutions(checkpoint, names)
        choices |= {"convolutions": convolutions or "auto", "float_convolutions": names}
    return checkpoint, choices


def _integer_graph(checkpoint: Checkpoint, target: Target, *, int4: bool) -> tuple[ir.Model, Sites]:
    names = {node.name: node.meta["layer"] for node in checkpoint.model.graph.nodes if node.meta.get("layer")}
    model = to_onnx(checkpoint.model, checkpoint.examples(), names, checkpoint.free_axes())
    timestep = next(v for v in model.graph.inputs if v.name == "timestep")
    static = len(checkpoint.timesteps) == 1 or checkpoint.artifact.manifest.activations == "static"
    if target == "onnxruntime":
        _one_timestep(model.graph, timestep)
    writer = _TARGETS[target](model.graph, timestep, checkpoint.table_timesteps, int4=int4, static=static)
    sites = lower(model, writer, checkpoint.layers, checkpoint.quantizers, correction=output_bias(checkpoint.model))
    if int4 and not _weight_only(checkpoint):
        formats = {name: layer.format for name, layer in checkpoint.layers.items() if isinstance(layer, QuantizedWeight)}
        sites.planes = unpack_together(model.graph, formats)
    if any(node.domain == FP4_DOMAIN for node in model.graph):
        model.opset_imports.update({"": FP4_OPSET, FP4_DOMAIN: 1})
        model.ir_version = max(model.ir_version, FP4_IR_VERSION)
    return model, sites


def _weight_only(checkpoint: Checkpoint) -> bool:
    """Whether activations stay float; ONNX Runtime then takes INT4 weights too."""
    return any(layer.weight_only for layer in checkpoint.layers.values())


def _float_codes(checkpoint: Checkpoint) -> set[str]:
    """The floating-point formats of its codes; none where all are integers. Beside them no product of two activations is quantized."""
    return {quantizer.format.name for quantizer in checkpoint.quantizers.values() if quantizer.format.floating}


def _one_timestep(graph: ir.Graph, timestep: ir.Value) -> None:
    """Make ``timestep`` [1] and expand it for the model's own use."""
    sample = graph.inputs[0]
    first = next(iter(graph))
    size = ir.Value(name="batch_size", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    every = ir.Value(name="timestep_of_each_sample", type=ir.TensorType(ir.DataType.FLOAT), shape=timestep.shape)
    ir.convenience.replace_all_uses_with(timestep, every)
    nodes = [
        ir.Node("", "Shape", [sample], [ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)], outputs=[size], name="batch_size/Shape"),
        ir.Node("", "Expand", [timestep, size], outputs=[every], name="timestep/Expand"),
    ]
    graph.insert_before(first, nodes)
    timestep.shape = ir.Shape([1])


def _float_graph(source: FloatModel) -> tuple[ir.Model, Sites]:
    model = to_onnx(source.graph, source.examples, source.layers, source.free)
    lower(model, None, {}, {})
    return model, Sites()


def _tidy(model: ir.Model) -> None:
    for value in model.graph.inputs:
        if value.shape and not isinstance(value.shape[0], int):  # the timestep of the onnxruntime target stays [1]
            value.shape = ir.Shape(["batch", *value.shape[1:]])
    model.opset_imports.pop("dq_deploy", None)
    passes.RemoveUnusedNodesPass()(model)


def _without_fp16(model: ir.Model, checkpoint: Checkpoint) -> tuple[set[ir.Value], list[dict[str, Any]]]:
    """The values that fp16 cannot hold, which stay fp32; and the manifest's account of them."""
    largest = largest_values(model, float_values(model.graph), checkpoint, write_model)
    wide = too_large(largest) | around_constants(model.graph)
    return wide, [part.model_dump() for part in describe(model.graph, wide, largest)]


def _complete(model: ir.Model, checkpoint: Checkpoint, target: Target, dtype: str) -> list[dict[str, Any]]:
    """Make a lowered graph what is written, its floats of ``dtype``; the manifest's account of what fp16 cannot hold."""
    if target == "onnxruntime":
        group_norms_by_instance(model.graph)
    _tidy(model)
    wide, kept = _without_fp16(model, checkpoint) if dtype == "fp16" else (set(), [])
    _finish(model, dtype, wide)
    return kept


def _finish(model: ir.Model, dtype: str, wide: Collection[ir.Value] = ()) -> None:
    graph = model.graph
    lower_precision(model, DTYPES[dtype], wide)
    if dtype == "bf16":
        model.opset_imports[""] = max(BF16_OPSET, model.opset_imports[""])
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    model.producer_name, model.producer_version = "dq-deploy", None
    model.metadata_props.clear()
    graph.name = "dq_deploy"


def write_model(model: ir.Model, path: Path) -> None:
    """Write ``model.onnx``, large tensors in ``model.onnx.data`` beside it, and check the result with onnx's full check.

    Raises ArtifactError when the checker refuses the graph.
    """
    large = any(v.const_value is not None and v.const_value.nbytes >= _EXTERNAL_BYTES for v in model.graph.initializers.values())
    ir.save(model, path, external_data=f"{path.name}.data" if large else None, size_threshold_bytes=_EXTERNAL_BYTES)  # noqa: TID251
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"onnx.checker refuses the exported graph: {error}") from error


def _manifest(checkpoint: Checkpoint, model: ir.Model, sites: Sites, kind: dict[str, Any], *, int4: bool) -> Manifest:
    parent = checkpoint.artifact.manifest
    details = parent.details
    inputs = [
        {
            "name": v.name,
            "dtype": str(v.dtype.numpy()) if v.dtype else None,
            "shape": [d if isinstance(d, int) else str(d) for d in v.shape or []],
        }
        for v in model.graph.inputs
    ]
    is_float = kind["float"]
    layers = [] if is_float else [_layer(layer, sites, int4=int4) for layer in details["layers"]]
    return Manifest(
        kind="bundle",
        model=parent.model,
        parent=checkpoint.artifact.as_parent,
        quantization=None if is_float else parent.quantization,
        scheduler=parent.scheduler,
        timesteps=parent.timesteps,
        details={
            **{key: details[key] for key in _CARRIED if key in details},
            "samples_per_image": _samples_per_image(details),
            **({"refit_of": details["refit"]["of"]} if details.get("refit") else {}),
            **kind,
            "inputs": inputs,
            "output": "out_sample",
            "layers": layers,
            "float_layers": details["float_layers"] if not is_float else [],
            "quantizers": sites.quantizers,
        },
    )


def _samples_per_image(details: dict[str, Any]) -> int:
    """Samples that the network sees at once for one image: two with guidance, unless a pipeline runs the halves one after the other."""
    samples: int = details["calibration"].get("samples_per_prompt", details["samples_per_seed"])
    return samples


def _layer(layer: dict[str, Any], sites: Sites, *, int4: bool) -> dict[str, Any]:
    """A layer's entry: the checkpoint's, where its output is in the graph, and what its weight is stored in."""
    storage = {}
    if int4 and layer.get("weight_codebook"):
        storage["weight_storage"] = "codebook"
    elif layer["name"] in sites.planes:
        storage["weight_storage"] = "planes"
    elif layer["op"] != "matmul":
        storage["weight_storage"] = storage_of(layer["weight_bits"], int4=int4, products=layer.get("format"))
    read = {"input": sites.inputs[layer["name"]]} if layer["name"] in sites.inputs else {}
    return {**layer, **read, "output": sites.layers[layer["name"]], **storage}
