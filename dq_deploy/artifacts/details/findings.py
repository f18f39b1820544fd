"""What quantizing found and chose: for people, and for reports."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import Field

from ...console import megabytes
from ..records import Open


def snr_span(snr_db: Sequence[float]) -> str:
    """SNR in dB over the timesteps, in words."""
    return f"median {median(snr_db):.1f} dB, worst {min(snr_db):.1f} dB"


def size_in_words(size: tuple[int, int] | None, tokens: int | None) -> str:
    """Height and width, the length of the text, or both: "512x768, 128 tokens"."""
    edges = [] if size is None else [f"{size[0]}x{size[1]}"]
    return ", ".join([*edges, *([] if tokens is None else [f"{tokens} tokens"])])


class BlockLoss(Open):
    """Held-out loss of a block before and after its distillation: relative to its target's power, averaged over timesteps."""

    block: str
    before: float
    after: float
    iterations: int = 0
    note: str = ""


class KeptState(Open):
    """Which state of the network distillation ended with, by where it ends: mean SNR in dB of some seeds' final samples, by state."""

    kept: str
    final_snr_db: dict[str, float]
    seeds: int = Field(ge=1)

    @property
    def summary(self) -> str:
        """In a line."""
        others = ", ".join(f"{name} {snr:.1f}" for name, snr in self.final_snr_db.items() if name != self.kept)
        return f"{self.kept}: final samples of {self.seeds} seeds have {self.final_snr_db[self.kept]:.1f} dB of SNR ({others})"


class RoundedLayer(Open):
    """A layer whose weights GPTQ rounded: its output's squared error on calibration samples, against that of the nearest codes.

    Its inputs were rounded in ``parts``, each for itself, where there are too many for one.
    """

    layer: str
    error_ratio: float = Field(ge=0)
    parts: int = Field(default=1, ge=1)


class WidthRecord(Open):
    """A width that the checkpoint can be exported with: bytes in an engine, SNR in dB at each timestep on held-out samples."""

    weight_bits: int = Field(ge=2, le=8)
    weights_bytes: int = Field(ge=0)
    snr_db: list[float] = Field(min_length=1)

    @property
    def name(self) -> str:
        """What it is, as tables have it."""
        return f"weights of {self.weight_bits} bits"

    @property
    def summary(self) -> str:
        """What it costs, and how near the float model it is."""
        return f"{megabytes(self.weights_bytes)}, {snr_span(self.snr_db)}"


class WidthChoice(Open):
    """What chose a width for each layer, under a ``budget`` as it was given, and what came of it: as ``WidthRecord`` has it.

    ``float_bytes``: 4 for each number of the float network. ``error_share`` by layer: with every layer at the fewest bytes, its part of
    the error that this adds to the network's output.
    """

    budget: str
    weights_bytes: int = Field(ge=0)
    float_bytes: int = Field(ge=1)
    snr_db: list[float] = Field(min_length=1)
    error_share: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)

    @property
    def summary(self) -> str:
        """What was asked for, what it costs, and how near the float model it is."""
        share = self.weights_bytes / self.float_bytes
        return f"{megabytes(self.weights_bytes)} ({share:.3f}x) of a budget of {self.budget}, {snr_span(self.snr_db)}"


class DilatedInput(Open):
    """What dilation did to a quantizer's input.

    ``unsaturated_share`` and ``dilated_share``: fractions of the input channels where s > 1 is allowed, and used. ``range_ratio``: the
    dilated range over the plain one, Δ'x/Δx. ``error_ratio``: the output error with dilation over without. ``folded_into``: what else
    divides by s (quantization/graph/fold.py).
    """

    quantizer: str
    choice: str
    unsaturated_share: float
    dilated_share: float
    range_ratio: float
    error_ratio: float
    folded_into: list[str]


class DilationRule(Open):
    """The rule used, and the mean SNR in dB of the network under each that was tried."""

    used: str
    mean_snr_db: dict[str, float]


class ScaleChoice(Open):
    """Linear layers that read one tensor, their outputs' SNR in dB by where its scale comes from, and what was taken."""

    layers: list[str]
    snr_db: dict[str, float]
    chosen: str


class FormatChoice(Open):
    """Linear layers that read one tensor and can multiply FP4: their parts of the output's error and of the weights, and what was taken."""

    layers: list[str]
    error_share: float
    weight_share: float
    chosen: Literal["fp4", "fp8"]


class RotatedInput(Open):
    """Linear layers that read one tensor, and how many of its channels are rotated together; 0: it is not.

    ``folded_into``: the layer whose outputs are rotated instead. ``snr_db``: of the layers' outputs, by the blocks that were tried.
    """

    layers: list[str]
    block: int = Field(ge=0)
    folded_into: str | None = None
    snr_db: dict[str, float] = Field(default_factory=dict)


class SkipHalvesRecord(Open):
    """How concatenated skip inputs are quantized."""

    mode: str


class CalibrationRecord(Open):
    """What the model was calibrated on, as far as it can be said again."""

    classes: list[int] | None = None
    prompts: Any = None
    negative_prompt: str | None = None


class RefitRecord(Open):
    """That a checkpoint has other weights than were calibrated: in which layers, and what was asked for beside the LoRA.

    ``clipped_weights`` is the fraction of their weights beyond the range of their scales, ``of`` the hash of the manifest that it was made
    from; ``new_source``: the source is another than that one's. ``ip_adapter_scale``: where another was asked for.
    """

    layers: list[str]
    clipped_weights: float
    of: str
    new_source: bool = False
    rounding: str | None = None
    ip_adapter_scale: float | None = None


PICTURE_KINDS = ("image", "mask", "control_image", "ip_adapter_image")
"""What pictures may be given to a pipeline, by the names of options and arguments."""


class GivenPictures(Open):
    """How many pictures of each kind a pipeline was calibrated with, and at which strength."""

    image: int = 0
    mask: int = 0
    control_image: int = 0
    ip_adapter_image: int = 0
    strength: float | None = None

    @property
    def kinds(self) -> list[str]:
        """Kinds of which there were any."""
        return [name for name in PICTURE_KINDS if getattr(self, name)]


class CalibratedSize(Open):
    """One of several sizes that were calibrated: height and width as they were asked for, and the length of the text in tokens.

    None is the source's own. ``sample_shape`` is the shape that the network's sample has then. Of a checkpoint ``snr_db`` has the SNR at
    each timestep on held-out samples of that size. One that is not ``calibrated`` lies between those that are, to see what that costs.
    """

    size: tuple[int, int] | None = None
    tokens: int | None = None
    sample_shape: list[int]
    calibrated: bool = True
    snr_db: list[float] = Field(default_factory=list)

    def __str__(self) -> str:
        return size_in_words(self.size, self.tokens)


class FreeDimension(Open):
    """A dimension of a graph's inputs that is free: its ``values`` at each calibrated size, as the network gets them.

    ``axes`` are the inputs that have it and where, the batch being 0. Any size from the least value to the largest is served that is a
    ``multiple`` of a number. One that follows another, as a ControlNet's residuals do, is ``ratio`` (numerator and denominator) times the
    dimension ``of``.
    """

    values: list[int] = Field(min_length=1)
    axes: list[tuple[str, int]]
    multiple: int = Field(ge=1)
    of: str | None = None
    ratio: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 1)

    @property
    def range(self) -> tuple[int, int, int]:
        """The least, the first and the largest calibrated value."""
        return min(self.values), self.values[0], max(self.values)

    def following(self, size: int) -> int:
        """Its size where the dimension ``of`` has this one."""
        return size * self.ratio[0] // self.ratio[1]
