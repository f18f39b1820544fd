"""What a comparison with a checkpoint needs to know of an artefact: which checkpoint, which forward, which bound."""

from __future__ import annotations

from typing import Any

from ..artifacts import Artifact
from ..artifacts.details import EngineDetails, GraphDetails
from ..engines.running.runner import Runner
from ..errors import EnvironmentProblem
from ..exporters.attention import float_attention
from ..exporters.convolutions import float_convolutions
from ..quantization.checkpoint import Checkpoint
from ..quantization.widths import sliced
from .end_to_end import MAX_SNR_DIFFERENCE_DB


def as_exported(checkpoint: Checkpoint, details: GraphDetails) -> Checkpoint:
    """The checkpoint's forward as the artefact has it: of its width, and without the quantizers that its export left out."""
    if details.width is not None:
        checkpoint = sliced(checkpoint, details.width, details.width_choice)
    if details.attention == "float":
        checkpoint = float_attention(checkpoint)
    elif isinstance(details, EngineDetails) and details.float_attention:
        checkpoint = float_attention(checkpoint, details.float_attention)
    names = details.float_convolutions
    return float_convolutions(checkpoint, names) if names else checkpoint


def computed_in(runner: Runner, dtype: str) -> str:
    """The type that decides what is allowed: the artefact's, or bf16, which OpenVINO's hint may have for what is not INT8."""
    return dtype if runner.details.get("precision", "f32") == "f32" else "bf16"


def allowed_db(runner: Runner, dtype: str) -> float:
    """Allowed difference in dB of SNR from the PyTorch forward."""
    return max(MAX_SNR_DIFFERENCE_DB[dtype], MAX_SNR_DIFFERENCE_DB[computed_in(runner, dtype)])


def refuse_bf16(bundle: Artifact[Any]) -> None:
    """Raise EnvironmentProblem for a bundle that nothing here can check."""
    if bundle.details.dtype == "bf16":
        raise EnvironmentProblem(
            f"{bundle.path} is a bf16 bundle, and ONNX Runtime has no bfloat16 kernels on a CPU to check it with",
            "its integers and scales are those of the fp32 export of the same checkpoint: check that one, and lint this one (check --lint)",
        )
