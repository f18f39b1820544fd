"""One cell: a checkpoint of some widths, and what each of them draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from benchmarks.rounding.study import Study
from dq_deploy.quantization.widths import sliced


class Figures(BaseModel):
    """By bits of the weights: PSNR in dB of each picture, and SNR in dB at each timestep on held-out seeds.

    One width: a checkpoint for it alone.
    """

    model_config = ConfigDict(extra="forbid")

    widths: list[int]
    iterations: int
    psnr_db: dict[int, list[float]]
    snr_db: dict[int, list[float]]


def measure(study: Study, widths: Sequence[int], iterations: int) -> Figures:
    """Quantize with 8-bit activations and GPTQ, and judge every width."""
    options: dict[str, Any] = {"matryoshka": tuple(widths)} if len(widths) > 1 else {"weight_bits": widths[0]}
    with study.quantized(preset="w8a8", rounding="gptq", iterations=iterations, **options) as checkpoint:
        if len(widths) == 1:
            psnr, snr = {widths[0]: study.psnr_db(checkpoint)}, {widths[0]: checkpoint.details.snr_db["after_distillation"]}
        else:
            psnr = {bits: study.psnr_db(sliced(checkpoint, bits)) for bits in widths}
            snr = {record.weight_bits: record.snr_db for record in checkpoint.details.widths}
    return Figures(widths=list(widths), iterations=iterations, psnr_db=psnr, snr_db=snr)
