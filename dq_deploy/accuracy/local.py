"""Local parity: every quantizer and layer of a bundle on the reference's recorded inputs, at every calibrated timestep (design §3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from ..artifacts import Artifact
from ..artifacts.details import BundleDetails, LoweredLayer
from ..artifacts.reading import read_ir
from ..errors import ArtifactError
from ..exporters.session import session_as_written
from ..formats.tables import CODES, UINT8_OFFSET
from ..progress import Progress, silent
from ..quantization.calibration.trajectories import Trajectories
from ..quantization.checkpoint import Checkpoint
from ..quantization.grid import positions
from ..quantization.numerics import per_sample
from ..quantization.quantizers import Quantized
from .harness import build_harness, layer_input, site_input
from .recording import QuantizerRecord, Records, record

MAX_CODE_STEP = 1
MAX_CODE_SHARE = 1e-4
"""A last-bit difference in fp32 flips codes near a tie: at most one step on at most 0.01% of the elements."""
FEW_CODES, FEW_SHARE = 3, 1e-3
"""Of a few thousand codes that share is not even one, and one tie that several samples have in common flips one in each: up to 3 codes
may differ where they are no more than 0.1%, and one always may."""
MAX_OUTPUT_ERROR = 1e-5
"""Largest output difference on the engine's own codes, relative to the output's largest element or, if that is larger, to what the
zero-points' correction takes off it: sums of shifted codes are as large as both, and are rounded at their own size."""
MAX_FLOAT_ERROR = {"fp32": MAX_OUTPUT_ERROR, "fp16": 2e-3, "bf16": 1.6e-2}
"""The same where activations stay float, by their type: two roundings of the input and two of the output."""
_Operands = dict[tuple[str, tuple[int, ...]], Quantized]
"""By quantizer, and how its emission is padded."""
_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class LayerParity(BaseModel):
    """Worst figures of one layer over all timesteps, each with the timestep where it was seen; codes of floats in steps of their grid.

    The codes are those of its activations; ``weight_codes``: those of its weight, as its activations stay float, and no tie excuses one.
    """

    layer: str
    code_mismatches: int = 0
    code_elements: int = 0
    code_step: float = 0.0
    output_error: float = 0.0
    output_elements: int = 0
    allowed_error: float = MAX_OUTPUT_ERROR
    weight_codes: bool = False
    worst_timestep: float = 0.0

    @property
    def code_fraction(self) -> float:
        """Fraction of the codes that differ."""
        return self.code_mismatches / max(self.code_elements, 1)

    @property
    def allowed_mismatches(self) -> int:
        """How many codes may differ, by one step."""
        return 0 if self.weight_codes else int(allowed_flips(self.code_elements))

    @property
    def passed(self) -> bool:
        """Whether every figure is within bounds; NaN and nothing compared are failures."""
        codes = self.code_step <= MAX_CODE_STEP and self.code_mismatches <= self.allowed_mismatches
        return bool(codes and self.output_error <= self.allowed_error and self.code_elements and self.output_elements)

    @property
    def severity(self) -> float:
        """How far beyond (or within) its bounds, for ranking; NaN ranks first."""
        return _severity(self.code_mismatches / allowed_flips(self.code_elements), self.code_step, self.output_error / self.allowed_error)


def allowed_flips(elements: int) -> float:
    """How many of so many codes may differ by one step."""
    return max(1.0, min(FEW_CODES, FEW_SHARE * elements), MAX_CODE_SHARE * elements)


def _severity(mismatches: float, step: float, error: float) -> float:
    """``error`` is in units of what is allowed."""
    figures = (mismatches, step / (MAX_CODE_STEP + 0.5), error)
    return float("inf") if any(map(math.isnan, figures)) else max(figures)  # max() alone would pass over NaN


@torch.no_grad()
def local_parity(bundle: Artifact[BundleDetails], checkpoint: Checkpoint, reference: Trajectories, *, seeds: int = 1,
                 progress: Progress = silent) -> list[LayerParity]:  # fmt: skip
    """Compare every layer at every calibrated timestep on the samples of the first ``seeds`` reference seeds.

    Both halves of guidance go in together: an unconditional half may be all zeros (SDXL's text), and an error is relative to the output.

    Raises ArtifactError when the bundle's layers are not the checkpoint's.
    """
    details = bundle.details
    _same_parts(details, checkpoint)
    model, outputs = build_harness(bundle)
    session = session_as_written(model)
    rows = {x.name: _row(x, details.dtype) for x in sorted(details.layers, key=lambda x: x.name)}
    _weight_codes(bundle, checkpoint, rows)
    worst = dict.fromkeys(rows, -1.0)
    with progress("local parity", len(reference.timesteps)) as advance:
        for index, timestep in enumerate(reference.timesteps):
            chosen = slice(seeds * reference.per_seed)
            given = checkpoint.inputs(reference, index, chosen)
            records = record(checkpoint, given)
            feeds = {site_input(i): records.quantizers[q.name].x.numpy() for i, q in enumerate(details.quantizers)}
            feeds |= {layer_input(i): records.floats[x.name].numpy() for i, x in enumerate(details.layers) if x.input is not None}
            feeds |= {name: value.numpy() for name, value in given.items()}  # where sizes are free, they are taken from these
            if details.target == "onnxruntime":
                feeds["timestep"] = feeds["timestep"][:1]
            types = {i.name: _NUMPY[i.type] for i in session.get_inputs()}
            values = dict(zip(outputs, session.run(outputs, {k: v.astype(types[k]) for k, v in feeds.items() if k in types}), strict=True))
            for name, severity in _compare(checkpoint, details, records, values, rows).items():
                if severity > worst[name]:
                    worst[name], rows[name].worst_timestep = severity, float(timestep)
            advance(1, f"timestep {float(timestep):g}")
    return list(rows.values())


def _row(layer: LoweredLayer, dtype: str) -> LayerParity:
    if layer.input is not None:
        return LayerParity(layer=layer.name, allowed_error=MAX_FLOAT_ERROR[dtype], weight_codes=True)
    return LayerParity(layer=layer.name)


def _weight_codes(bundle: Artifact, checkpoint: Checkpoint, rows: Mapping[str, LayerParity]) -> None:
    """Count the weight's codes where activations stay float: in the graph they are the checkpoint's."""
    names = {name: layer for name, layer in checkpoint.layers.items() if layer.weight_only}
    if not names:
        return
    graph = read_ir(bundle.file("model.onnx"), listed=bundle.manifest.files).graph
    for name, layer in names.items():
        stored = graph.initializers.get(f"{name}.{CODES}")
        if stored is None or stored.const_value is None or layer.frozen is None:
            raise ArtifactError(f"{bundle.path}: the graph has no weight '{name}.weight.codes'")
        codes = torch.from_numpy(stored.const_value.numpy().astype(np.int8))
        expected = layer.frozen.codes.T if layer.channel_axis == -1 else layer.frozen.codes
        row = rows[name]
        row.code_mismatches, row.code_elements, row.code_step = _code_difference(codes, expected)


def _same_parts(details: BundleDetails, checkpoint: Checkpoint) -> None:
    """What the bundle's manifest leaves out would go unjudged."""
    layers = [{x.name: tuple(x.quantizers) for x in d.layers} for d in (details, checkpoint.details)]
    different = sorted(name for name in layers[0].keys() | layers[1].keys() if layers[0].get(name) != layers[1].get(name))
    if different:
        raise ArtifactError(f"the bundle and the checkpoint have different layers: {', '.join(different[:5])}")
    quantizers = {x.name for x in details.quantizers} ^ {x.name for x in checkpoint.details.quantizers}
    if quantizers:
        raise ArtifactError(f"the bundle and the checkpoint have different quantizers: {', '.join(sorted(quantizers)[:5])}")


def _compare(checkpoint: Checkpoint, details: BundleDetails, records: Records, values: Mapping[str, Any],
             rows: dict[str, LayerParity]) -> dict[str, float]:  # fmt: skip
    """Add one timestep's figures to ``rows``; gives each layer's severity at this timestep."""
    peaks = dict.fromkeys(rows, 0.0)
    layers = checkpoint.layers
    readers = {name: [x.name for x in details.layers if name in x.quantizers] for name in records.quantizers}
    operands: _Operands = {}
    shifts: _Operands = {}
    for site in details.quantizers:
        known = records.quantizers[site.name]
        codes = torch.from_numpy(values[site.codes].astype(np.float32))
        if site.code_type == "UINT8":
            codes = codes - UINT8_OFFSET
        expected = _padded(known, site.pads)
        fmt = checkpoint.quantizers[site.name].format
        mismatches, elements, step = _code_difference(positions(codes, fmt), positions(expected, fmt))
        for layer in readers[site.name]:
            seen = rows[layer]
            seen.code_mismatches += mismatches
            seen.code_elements += elements
            worst = _severity(mismatches / allowed_flips(elements), step, 0.0)
            seen.code_step = _worse(seen.code_step, step)
            peaks[layer] = max(peaks[layer], worst)
        zero_point = per_sample(known.zero_point, codes)
        inner = _cropped(codes, site.pads) - zero_point
        operands[site.name, tuple(site.pads)] = Quantized(inner, known.scale)
        if bool(zero_point.any()):
            shifts[site.name, tuple(site.pads)] = Quantized(zero_point.expand_as(inner), known.scale)
    for entry in details.layers:
        got = torch.from_numpy(values[entry.output]).float()
        name = entry.name
        inputs: list[Any] = [records.floats[name]] if entry.input is not None else [_operand(operands, x) for x in entry.quantizers]
        expected = layers[name](*inputs)
        row = rows[name]
        if got.shape != expected.shape:
            raise ArtifactError(f"layer '{name}' gives {tuple(got.shape)} in the graph and {tuple(expected.shape)} in the reference")
        difference, largest = float((got - expected).abs().max()), max(float(expected.abs().max()), 1e-30)
        if difference > row.allowed_error * largest and entry.input is None:
            largest = max(largest, _taken_off(layers[name], entry.quantizers, operands, shifts))
        error = difference / largest
        row.output_error = _worse(row.output_error, error)
        row.output_elements += got.numel()
        peaks[name] = max(peaks[name], _severity(0.0, 0.0, error / row.allowed_error))
    return peaks


def _operand(operands: _Operands, name: str) -> Quantized:
    """Any emission of the quantizer: they differ in padding only, which is cropped."""
    return next(value for (candidate, _), value in operands.items() if candidate == name)


def _taken_off(layer: torch.nn.Module, quantizers: list[str], operands: _Operands, shifts: _Operands) -> float:
    """The largest that a layer makes of its zero-points instead of its activations; 0 without any."""
    shifted = {name for name, _ in shifts}
    if not shifted.intersection(quantizers):
        return 0.0
    return float(layer(*(_operand(shifts if name in shifted else operands, name) for name in quantizers)).abs().max())


def _padded(known: QuantizerRecord, pads: list[int]) -> torch.Tensor:
    """The reference's codes with the zero-point all around, as the graph has them when it pads first."""
    if not pads:
        return known.codes
    half = len(pads) // 2
    widths = [w for i in reversed(range(half)) for w in (pads[i], pads[half + i])]
    inner = torch.ones_like(known.codes)
    inside = torch.nn.functional.pad(inner, widths)
    padded = torch.nn.functional.pad(known.codes, widths)
    return torch.where(inside > 0, padded, per_sample(known.zero_point, padded))


def _cropped(codes: torch.Tensor, pads: list[int]) -> torch.Tensor:
    half = len(pads) // 2
    for i in range(half):
        axis = 2 + i
        codes = codes.narrow(axis, pads[i], codes.shape[axis] - pads[i] - pads[half + i])
    return codes


def _code_difference(codes: torch.Tensor, expected: torch.Tensor) -> tuple[int, int, float]:
    """Differing elements, elements, largest difference."""
    if codes.shape != expected.shape:
        return expected.numel(), expected.numel(), float("inf")
    difference = (codes - expected).abs()
    return int((difference != 0).sum()), difference.numel(), float(difference.max())


def _worse(before: float, now: float) -> float:
    """The larger; NaN is worst, and stays."""
    return before if now <= before or math.isnan(before) else now
