"""Outside tools at W8A8, as their own documentation uses them: ONNX Runtime's ``quantize_static``, NNCF's and torchao's ``quantize``.

The first two see the trajectories that the other methods are calibrated on, and leave the first layer in float as the other methods do.
torchao needs no samples: its scales are computed as it runs, and only linear layers are quantized, all of them. ONNX Runtime's is judged
by what its graph says, QDQ nodes computed in float; NNCF's by OpenVINO's INT8 kernels, on a CPU where they are exact: in float OpenVINO
computes something else from it (benchmarks/accuracy/STUDY.md).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from dq_deploy.engines.openvino.int8_kernels import int8_saturates
from dq_deploy.errors import EnvironmentProblem

from .drawing import Array, Denoiser, Trace
from .models import Reference

FLOAT_ONNX, ORT_ONNX, NNCF_XML = "float.onnx", "quantized.onnx", "quantized.xml"
_OPSET = 20
# What the other methods quantize. With its default of every operator it knows, quantize_static fails on a reshaped weight of the UNet.
_PRODUCTS = ["Conv", "Gemm", "MatMul"]


def export_float(reference: Reference, shape: tuple[int, ...], file: Path) -> None:
    """The float model as ONNX, by torch's own exporter: float32 inputs, the batch's size open."""
    names = reference.input_names
    batch = torch.export.Dim("batch", min=1, max=4096)
    values = {**reference.conditions(range(2)), names[0]: torch.zeros(2, *shape), "timestep": torch.tensor([1.0, 2.0])}

    class Positional(torch.nn.Module):
        """Takes the inputs in their order, gives a tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.model = reference.source.model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            named = dict(zip(names, inputs, strict=True))
            return reference(named.pop(names[0]), named.pop("timestep"), **named)

    program = torch.onnx.export(
        Positional().eval(), tuple(values[name] for name in names), dynamo=True, verbose=False, opset_version=_OPSET, input_names=names,
        output_names=["out_sample"], dynamic_shapes=(tuple({0: batch} for _ in names),),
    )  # fmt: skip
    assert program is not None
    program.save(file)


def feeds(trace: Trace, conditions: dict[str, torch.Tensor], names: list[str], batch: int) -> Iterator[dict[str, Array]]:
    """The inputs of a trace as batches: every timestep of every seed once."""
    for timestep, samples in zip(trace.timesteps, trace.samples, strict=True):
        for start in range(0, len(samples), batch):
            part = slice(start, start + batch)
            values = {name: value[part].numpy() for name, value in conditions.items()}
            values |= {names[0]: samples[part].numpy(), "timestep": np.full(len(samples[part]), timestep, np.float32)}
            yield {name: values[name] for name in names}


def first_products(file: Path, sample: str) -> list[str]:
    """Names of the products that see the model's input before another product has: through a concatenation, a scaling or a shift."""
    graph = onnx.load(file, load_external_data=False).graph
    reached, found = {sample}, []
    for node in graph.node:  # sorted: what a node reads comes before it
        if reached.intersection(node.input):
            if node.op_type in _PRODUCTS:
                found.append(node.name)
            elif node.op_type != "Shape":
                reached.update(node.output)
    return found


def quantize_onnxruntime(folder: Path, names: list[str], batches: Iterator[dict[str, Array]]) -> None:
    """``float.onnx`` → ``quantized.onnx``: static QDQ, min–max ranges, weights signed and per channel, activations unsigned."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands the batches out."""

        def get_next(self) -> dict[str, Array] | None:
            return next(batches, None)

    prepared = folder / "prepared.onnx"
    # The exporter has written every shape; onnxruntime's symbolic inference knows fewer operators.
    quant_pre_process(str(folder / FLOAT_ONNX), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        prepared, folder / ORT_ONNX, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, op_types_to_quantize=_PRODUCTS, nodes_to_exclude=first_products(prepared, names[0]),
    )  # fmt: skip
    prepared.unlink()


def onnxruntime_denoiser(folder: Path, names: list[str]) -> Denoiser:
    """``quantized.onnx`` run as it is written, without graph optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(folder / ORT_ONNX), options, providers=["CPUExecutionProvider"])
    return _named(lambda values: session.run(None, values)[0], names)


def quantize_nncf(folder: Path, names: list[str], batches: Iterator[dict[str, Array]], *, transformer: bool) -> None:
    """``float.onnx`` → ``quantized.xml``: NNCF's post-training quantization of the OpenVINO model, all calibration batches.

    Two settings are not its defaults, since with those it knows one timestep from another badly (STUDY.md): the
    sines and cosines of the timestep stay in float, as they do in every other method, and a range covers what all samples have; by default
    it is the mean of each sample's extremes, which samples of other timesteps exceed. Constants are folded first: a product whose weight is
    computed (weight standardization) would stay in float.
    """
    nncf, openvino = _import("nncf"), _import("openvino")
    data = list(batches)
    model = openvino.Core().read_model(folder / FLOAT_ONNX)
    first = first_products(folder / FLOAT_ONNX, names[0])
    _fold_constants(model)
    operations = [op.get_friendly_name() for op in model.get_ordered_ops()]
    kept = [n for n in operations if n in first or n.removesuffix("/WithoutBiases") in first] + _phases(model)
    ranges = importlib.import_module("nncf.quantization.range_estimator").RangeEstimatorParametersSet.MINMAX
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.DISABLE, activations_range_estimator_params=ranges)
    quantized = nncf.quantize(
        model, nncf.Dataset(data), preset=nncf.QuantizationPreset.MIXED, subset_size=len(data), advanced_parameters=advanced,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        ignored_scope=nncf.IgnoredScope(names=kept),
    )  # fmt: skip
    openvino.save_model(quantized, folder / NNCF_XML, compress_to_fp16=False)


def _fold_constants(model: Any) -> None:
    passes = importlib.import_module("openvino.passes")
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)


def _phases(model: Any) -> list[str]:
    """Names of what an OpenVINO model computes of the timestep before a weight meets it."""
    found: dict[str, None] = {}
    reached = list(model.input("timestep").get_target_inputs())
    while reached:
        node = reached.pop().get_node()
        if node.get_type_name() in ("MatMul", "Convolution") or node.get_friendly_name() in found:
            continue
        found[node.get_friendly_name()] = None
        reached += [user for output in node.outputs() for user in output.get_target_inputs()]
    return list(found)


def nncf_denoiser(folder: Path, names: list[str]) -> Denoiser:
    """``quantized.xml`` as a user runs it: INT8 kernels, float32 for the rest. Raises EnvironmentProblem where those kernels saturate."""
    openvino = _import("openvino")
    if int8_saturates():
        raise EnvironmentProblem("the INT8 kernels of this CPU saturate: it has no VNNI", "measure NNCF on a CPU that has it")
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(folder / NNCF_XML, "CPU", config)
    return _named(lambda values: compiled(values)[0], names)


def torchao_denoiser(reference: Reference) -> Denoiser:
    """The model with torchao's INT8 linear layers, scales for each token computed as it runs, by its kernels of integers."""
    torchao = _import("torchao.quantization")
    model = deepcopy(reference.source.model)
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig())
    return replace(reference, source=replace(reference.source, model=model))


def _named(run: Any, names: list[str]) -> Denoiser:
    def call(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        values = {**conditions, names[0]: sample, "timestep": timestep.float()}
        return torch.from_numpy(np.array(run({name: values[name].contiguous().numpy() for name in names})))

    return call


def _import(name: str) -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # the one switch of NNCF's usage reports, read when it is imported
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EnvironmentProblem(f"this method needs {name}: {error}", "pip install 'dq-deploy[benchmarks]'") from None
