"""Which layers make a checkpoint's error at a timestep, and what more bits for one of them would buy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel

from ..artifacts.details import QuantizedLayer
from ..decibels import snr_db
from ..formats import ScaleSource, of_bits
from ..progress import Progress, silent
from ..quantization.bits.sensitivity import BitPair, Sensitivity, sensitivities
from ..quantization.checkpoint import Checkpoint
from ..quantization.config import QuantizeConfig
from ..quantization.graph.products import GraphLayer, find_layers
from .layer_error import float_graph, layer_errors

RAISED: BitPair = (8, 8)
_SAMPLES = 8  # network inputs that a layer's sensitivity is measured on, at the most


class LayerSource(BaseModel):
    """A layer and its part of the error, ``weight_bits`` None for a product of two activations, ``format`` as ``QuantizedLayer`` has it.

    ``output_db`` is the SNR of its output against the float model's, with all error made before it. ``error_share`` is its rounding's part
    of the error at the network's output; ``raised_db`` and ``float_db`` are the network's SNR as predicted with 8 bits for this layer
    (None: it has them), and with this layer left in float.
    """

    layer: str
    weight_bits: int | None
    activation_bits: int
    format: str | None = None
    output_db: float | None
    error_share: float
    raised_db: float | None
    float_db: float


class ErrorSources(BaseModel):
    """The layers at one timestep, in the graph's order. ``snr_db`` is the PyTorch quantized forward's, against the float model.

    ``first_below`` is the first layer whose output is below the bound that was requested, None for none.
    """

    timestep: float
    snr_db: float
    first_below: str | None
    layers: list[LayerSource]

    @property
    def worst(self) -> list[LayerSource]:
        """Those with the largest share first."""
        return sorted(self.layers, key=lambda row: -row.error_share)


@torch.no_grad()
def error_sources(checkpoint: Checkpoint, timestep: float, *, min_snr: float | None = None, progress: Progress = silent) -> ErrorSources:
    """Split the error at a calibrated ``timestep`` among the layers.

    Each layer is rounded alone in the float model, on the checkpoint's held-out samples; errors of different layers are taken to add up.
    The roundings are those of before distillation, so shares and predictions are estimates.

    Raises UsageError (the float model was in memory) and ArtifactError (it has changed since).
    """
    reference = checkpoint.reference()
    row = reference.timesteps.tolist().index(timestep)
    graph = float_graph(checkpoint)
    measured = layer_errors(checkpoint, table_rows=[row], graph=graph, progress=progress)
    bits = {layer.name: layer for layer in checkpoint.details.layers}
    layers = [_as_quantized(layer, bits[layer.name], checkpoint) for layer in find_layers(graph) if layer.name in bits]
    chosen = slice(max(1, _SAMPLES // reference.per_seed) * reference.per_seed)
    config = QuantizeConfig(**(checkpoint.artifact.manifest.quantization or {}))
    found = sensitivities(graph, list(checkpoint.inputs(reference, row, chosen).values()), layers, _settings, config, progress)
    snr = snr_db(reference.outputs[row], checkpoint.model(*checkpoint.inputs(reference, row).values()))
    total = sum(float(x.noise[_given(layer)].mean()) for x, layer in zip(found, layers, strict=True))
    sources = [_source(x, layer, total, snr, measured.output_db.get(x.layer, [None])[0]) for x, layer in zip(found, layers, strict=True)]
    below = (r.layer for r in sources if min_snr is not None and r.output_db is not None and r.output_db < min_snr)
    return ErrorSources(timestep=timestep, snr_db=snr, first_below=next(below, None), layers=sources)


def _as_quantized(layer: GraphLayer, record: QuantizedLayer, checkpoint: Checkpoint) -> GraphLayer:
    """The float graph's layer with the bits, blocks and kind of quantizer that the checkpoint has for it."""
    layer.weight_format = of_bits(record.weight_bits or layer.weight_bits, record.format)
    layer.activation_format = of_bits(record.activation_bits, record.format)
    layer.options["block"] = record.weight_block
    read = [checkpoint.quantizers[name] for name in record.quantizers]
    layer.quantizer = next((quantizer.kind for quantizer in read if quantizer.source is ScaleSource.COMPUTED), None)
    return layer


def _given(layer: GraphLayer) -> BitPair:
    return layer.weight_bits, layer.activation_bits


def _settings(layer: GraphLayer) -> Sequence[BitPair]:
    given = _given(layer)
    return list(dict.fromkeys((given, (max(given[0], RAISED[0]), max(given[1], RAISED[1])))))


def _source(measured: Sensitivity, layer: GraphLayer, total: float, snr: float, output_db: float | None) -> LayerSource:
    settings = _settings(layer)
    low, high = (float(measured.noise[bits].mean()) / max(total, 1e-300) for bits in (settings[0], settings[-1]))
    return LayerSource(
        layer=layer.name, weight_bits=None if layer.op == "matmul" else layer.weight_bits, activation_bits=layer.activation_bits,
        format=layer.products, output_db=output_db, error_share=low, raised_db=_without(snr, low - high) if len(settings) > 1 else None,
        float_db=_without(snr, low),
    )  # fmt: skip


def _without(snr: float, fraction: float) -> float:
    """The SNR in dB when a fraction of the noise is gone."""
    return snr - 10 * math.log10(max(1 - fraction, 1e-6))
