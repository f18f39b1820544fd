"""What the manifest's ``details`` of each kind of artefact hold: parsed once, when the artefact is opened, and typed from there on.

Only those who write a manifest handle dictionaries. More keys than these are let through: they are for people.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..formats import CODES, FP16, NumberFormat, ScaleSource, of_bits
from ..formats.target import target_name
from .final_error import FinalError
from .manifest import Manifest
from .reading.plain import as_record

Target = Annotated[Literal["qdq", "onnxruntime", "tensorrt"], AfterValidator(target_name)]
"""``tensorrt`` is a former name, and read as that of today."""


class _Open(BaseModel):
    """More keys may be there."""

    model_config = ConfigDict(extra="allow", frozen=True)


def _known_bits(bits: int) -> int:
    if bits not in CODES and bits != FP16.bits:
        raise ValueError(f"{bits} bits are neither codes ({min(CODES)} to {max(CODES)}) nor floats ({FP16.bits})")
    return bits


class Product(_Open):
    """A convolution, linear layer or matrix product; ``macs`` are multiply-accumulates per sample."""

    name: str
    op: str
    macs: int = Field(ge=0)


class FloatLayer(Product):
    """A layer left in float, and why."""

    reason: str


class WeightCodebook(_Open):
    """Of a weight that is made of codewords: how many weights a codeword has, and how many are summed (``formats.codebook``)."""

    length: int
    books: int


class QuantizedLayer(Product):
    """A quantized layer: its bits (no weight: a product of two activations), and the quantizers that it reads (none: floats).

    ``format`` is the number format that it is planned to multiply in, where that is not what its bits say.

    ``widths``: bits to which its weight can be sliced, ``weight_bits`` first.
    """

    weight_bits: int | None = Field(default=None, ge=2, le=8)
    activation_bits: Annotated[int, AfterValidator(_known_bits)]
    weight_block: int = 0
    weight_codebook: WeightCodebook | None = None
    format: str | None = None
    widths: list[int] = Field(default_factory=list)
    quantizers: list[str]

    @property
    def activation_format(self) -> NumberFormat:
        """What its activations are."""
        return of_bits(self.activation_bits, self.format)


class LoweredLayer(QuantizedLayer):
    """The same in a graph: ``output`` is a value's name, ``input`` too where its activations stay float."""

    output: str
    input: str | None = None
    weight_storage: str | None = None


class QuantizerEntry(_Open):
    """An activation quantizer of a checkpoint and the layers that read it. ``source``: its scales are computed, or rows of a table.

    ``block``: channels that share a computed scale, which needs no table; 0: all of a token.
    """

    name: str
    layers: list[str]
    source: ScaleSource = ScaleSource.TABLE
    block: int = 0


class QuantizerSite(_Open):
    """A quantizer where a graph has it: the values that it reads and gives, and how it pads. ``block`` as ``QuantizerEntry`` has it."""

    name: str
    input: str
    codes: str
    pads: list[int]
    code_type: Literal["INT8", "UINT8", "FLOAT8E4M3FN", "FLOAT4E2M1"]
    source: ScaleSource = ScaleSource.TABLE
    block: int = 0


class Condition(_Open):
    """Type and shape, without the batch, of a further input."""

    dtype: str
    shape: list[int]


class _Tree(BaseModel):
    """One of its fields that say what it is, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kinds: ClassVar[tuple[str, ...]] = ("rows", "list", "tuple", "dict")

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        found = [kind for kind in cls.kinds if isinstance(value, dict) and kind in value]
        if len(found) != 1:
            raise ValueError(f"it must have one of {', '.join(cls.kinds)}")
        return value


class ArgumentTree(_Tree):
    """The structure of an argument: an input of the graph, a constant, or a collection of these."""

    kinds: ClassVar[tuple[str, ...]] = ("input", "constant", "rows", "list", "tuple", "dict")
    input: str | None = None
    shared: int | None = Field(default=None, ge=0)
    stacked: int | None = Field(default=None, ge=1)
    constant: bool | int | float | str | None = None
    rows: ArgumentTree | None = None
    in_list: list[ArgumentTree] = Field(default_factory=list, alias="list")
    in_tuple: list[ArgumentTree] = Field(default_factory=list, alias="tuple")
    in_dict: list[tuple[int | str, ArgumentTree]] = Field(default_factory=list, alias="dict")


class OutputTree(_Tree):
    """The structure of an output: a tensor's shape without the batch, or a collection of these; ``class`` is one of diffusers."""

    kinds: ClassVar[tuple[str, ...]] = ("tensor", "rows", "list", "tuple", "dict")
    tensor: list[int] | None = None
    rows: OutputTree | None = None
    in_list: list[OutputTree] = Field(default_factory=list, alias="list")
    in_tuple: list[OutputTree] = Field(default_factory=list, alias="tuple")
    in_dict: list[tuple[int | str, OutputTree]] = Field(default_factory=list, alias="dict")
    kind: str | None = Field(default=None, alias="class")


class CallArguments(_Open):
    """Arguments of the network: what may be given by position, and the structure and constants of those that are not plain tensor."""

    parameters: list[str] = Field(min_length=1)
    timestep: str
    arguments: dict[str, ArgumentTree]
    defaults: dict[str, Any]


class NetworkCall(_Open):
    """How a network is called; a part that is None needs no word (quantization/calling has the details)."""

    arguments: CallArguments | None
    output: OutputTree | None

    def record(self) -> dict[str, Any]:
        """As ``quantization.calling`` takes it: the trees are JSON values there too."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class GraphInput(_Open):
    """An input of a graph; a dimension is a size or the name of a dynamic one."""

    name: str
    dtype: str | None
    shape: list[int | str]


class GraphOutput(_Open):
    """The output of a graph; a dimension is a size, the name of a dynamic one, or None where it is unknown."""

    name: str
    dtype: str
    shape: list[int | str | None]


class Place(_Open):
    """Where a source lies that is the user's own: ``absolute`` (``~`` for the home folder), and as seen from the artefact."""

    absolute: str | None = None
    relative: str | None = None
    sha256: str


class Adapter(Place):
    """A LoRA file that was fused into the weights."""

    path: str
    scale: float


class Beside(Place):
    """The folder of a ControlNet that steers the model, or of the pipeline that the model, a ControlNet, steers."""

    path: str


class Origin(Place):
    """Where the float model came from, as the user typed it, and the hash of its weights."""

    reference: str
    lora: Adapter | None = None
    controlnet: Beside | None = None
    pipeline: Beside | None = None


class BlockLoss(_Open):
    """Held-out loss of a block before and after its distillation: relative to its target's power, averaged over timesteps."""

    block: str
    before: float
    after: float
    iterations: int = 0
    note: str = ""


class RoundedLayer(_Open):
    """A layer whose weights GPTQ rounded: its output's squared error on calibration samples, against that of the nearest codes.

    Its inputs were rounded in ``parts``, each for itself, where there are too many for one.
    """

    layer: str
    error_ratio: float = Field(ge=0)
    parts: int = Field(default=1, ge=1)


class WidthRecord(_Open):
    """A width that the checkpoint can be exported with: bytes in an engine, SNR in dB at each timestep on held-out samples."""

    weight_bits: int = Field(ge=2, le=8)
    weights_bytes: int = Field(ge=0)
    snr_db: list[float]


class DilatedInput(_Open):
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


class DilationRule(_Open):
    """The rule used, and the mean SNR in dB of the network under each that was tried."""

    used: str
    mean_snr_db: dict[str, float]


class ScaleChoice(_Open):
    """Linear layers that read one tensor, their outputs' SNR in dB by where its scale comes from, and what was taken."""

    layers: list[str]
    snr_db: dict[str, float]
    chosen: str


class FormatChoice(_Open):
    """Linear layers that read one tensor and can multiply FP4: their parts of the output's error and of the weights, and what was taken."""

    layers: list[str]
    error_share: float
    weight_share: float
    chosen: Literal["fp4", "fp8"]


class RotatedInput(_Open):
    """Linear layers that read one tensor, and how many of its channels are rotated together; 0: it is not.

    ``folded_into``: the layer whose outputs are rotated instead. ``snr_db``: of the layers' outputs, by the blocks that were tried.
    """

    layers: list[str]
    block: int = Field(ge=0)
    folded_into: str | None = None
    snr_db: dict[str, float] = Field(default_factory=dict)


class SkipHalvesRecord(_Open):
    """How concatenated skip inputs are quantized."""

    mode: str


class CalibrationRecord(_Open):
    """What the model was calibrated on, as far as it can be said again."""

    classes: list[int] | None = None
    prompts: Any = None


class GivenPictures(_Open):
    """How many pictures of each kind a pipeline was calibrated with, and at which strength."""

    image: int = 0
    mask: int = 0
    control_image: int = 0
    strength: float | None = None

    @property
    def kinds(self) -> list[str]:
        """Kinds of which there were any."""
        return [name for name in ("image", "mask", "control_image") if getattr(self, name)]


class CalibratedSize(_Open):
    """One of several sizes that were calibrated: height and width as they were asked for, and the shape that the network's sample has then.

    Of a checkpoint ``snr_db`` has the SNR at each timestep on held-out samples of that size. One that is not ``calibrated`` lies between
    those that are, to see what that costs.
    """

    size: tuple[int, int]
    sample_shape: list[int]
    calibrated: bool = True
    snr_db: list[float] = Field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"


class FreeDimension(_Open):
    """A dimension of a graph's inputs that is free: its ``values`` at each calibrated size, as the network gets them.

    ``axes`` are the inputs that have it and where, the batch being 0. Any size from the least value to the largest is served that is a
    ``multiple`` of a number.
    """

    values: list[int] = Field(min_length=1)
    axes: list[tuple[str, int]]
    multiple: int = Field(ge=1)

    @property
    def range(self) -> tuple[int, int, int]:
        """The least, the first and the largest calibrated value."""
        return min(self.values), self.values[0], max(self.values)


class Details(_Open, ABC):
    """What every artefact of a model has."""

    component: str | None = None
    pipeline_class: str | None = None
    # "model_" is pydantic's own prefix.
    network_config: dict[str, Any] | None = Field(default=None, alias="model_config")
    sample_shape: list[int] = Field(min_length=1)
    picture_size: dict[Literal["height", "width", "num_frames"], int] = Field(default_factory=dict)
    pictures: GivenPictures | None = None
    calibrated_sizes: list[CalibratedSize] = Field(default_factory=list)
    free: dict[str, FreeDimension] = Field(default_factory=dict)
    call: NetworkCall | None = None
    source: Origin | None = None

    @property
    @abstractmethod
    def input_names(self) -> list[str]:
        """Names of the network's inputs, in its order."""

    @property
    def call_record(self) -> dict[str, Any] | None:
        """How the network is called, as ``quantization.calling`` takes it."""
        return self.call.record() if self.call else None


class CheckpointDetails(Details):
    """``details`` of a checkpoint (written by quantization/pipeline.py)."""

    # Required of what came from a checkpoint, though an engine may do without.
    component: str | None
    pipeline_class: str | None
    network_config: dict[str, Any] | None = Field(alias="model_config")
    source: Origin | None
    inputs: list[str] = Field(min_length=1)
    conditions: dict[str, Condition]
    calibration: CalibrationRecord
    samples_per_seed: int = Field(ge=1)
    layers: list[QuantizedLayer]
    float_layers: list[FloatLayer]
    quantizers: list[QuantizerEntry]
    skip_halves: SkipHalvesRecord
    float_mac_share: float = Field(ge=0, le=1)
    snr_db: dict[str, list[float]]
    # None: a checkpoint from before there were any.
    final_error: FinalError | None = None
    clipped: dict[str, list[float]] | None = None
    rounding: list[RoundedLayer] | None = None
    distillation: list[BlockLoss]
    dilation: list[DilatedInput]
    dilation_rule: DilationRule
    scale_choices: list[ScaleChoice] = Field(default_factory=list)
    format_choices: list[FormatChoice] = Field(default_factory=list)
    rotation: list[RotatedInput] = Field(default_factory=list)
    widths: list[WidthRecord] = Field(default_factory=list)

    @property
    def rotated(self) -> str:
        """How many inputs of linear layers are rotated, in words."""
        turned = [entry for entry in self.rotation if entry.block]
        blocks = ", ".join(map(str, sorted({entry.block for entry in turned})))
        folded = sum(entry.folded_into is not None for entry in turned)
        how = [f"in blocks of {blocks}"] if turned else []
        how += [f"{folded} of them by the layer before"] if folded else []
        return ", ".join([f"{len(turned)} of {len(self.rotation)} inputs of linear layers", *how])

    @property
    def per_token(self) -> str:
        """How many of the quantizers compute a scale for each token, in words."""
        computed = sum(entry.source is ScaleSource.COMPUTED and not entry.block for entry in self.quantizers)
        return f"{computed} of {len(self.quantizers)} quantizers"

    @property
    def formats(self) -> str | None:
        """How many linear layers multiply FP4, and which were made FP8 ones by what they lose, in a line; None: there was no choice."""
        if not self.format_choices:
            return None
        wider = [choice for choice in self.format_choices if choice.chosen == "fp8"]
        count, fp8 = (sum(len(choice.layers) for choice in some) for some in (self.format_choices, wider))
        kept = f"; FP8 for {fp8} that had {sum(choice.error_share for choice in wider):.0%} of the error" if wider else ""
        return f"FP4 in {count - fp8} of {count} linear layers{kept}"

    @property
    def input_names(self) -> list[str]:
        """See ``Details``."""
        return self.inputs

    @property
    def rounding_summary(self) -> str:
        """How many layers were rounded by what their inputs are, and what that was worth before any training, in a line."""
        if not self.rounding:
            return "none"
        middle = median(layer.error_ratio for layer in self.rounding)
        fitted = sum(layer.weight_codebook is not None for layer in self.layers)
        which = f"{len(self.rounding)} of {len(self.layers)} layers" + (f", {fitted} of them to codewords" if fitted else "")
        return f"{which}; a layer's error is {middle:.2f} of that of nearest codes (median)"


class RunnableDetails(Details):
    """What can run says of its inputs: one graph, or several that take turns."""

    inputs: list[GraphInput] = Field(min_length=1)

    @property
    def input_names(self) -> list[str]:
        """See ``Details``."""
        return [entry.name for entry in self.inputs]


class GraphDetails(RunnableDetails):
    """What a bundle says of its graph, and an engine built from it repeats.

    ``width``: bits to which the checkpoint's weights were sliced, all of those that can be, or each by its layer.
    """

    target: Target
    dtype: Literal["fp32", "fp16", "bf16"]
    float: bool
    # Bundles from before there was a choice for each engine say nothing, and have these products in INT8 everywhere.
    attention: Literal["auto", "int8", "float"] = "int8"
    float_convolutions: list[str] = Field(default_factory=list)
    width: int | dict[str, int] | None = None


class BundleDetails(GraphDetails):
    """``details`` of a bundle (written by exporters/bundle.py)."""

    component: str | None
    pipeline_class: str | None
    network_config: dict[str, Any] | None = Field(alias="model_config")
    source: Origin | None
    convolutions: Literal["auto", "integer", "float"] | None = None
    kept_fp32: list[dict[str, Any]] = Field(default_factory=list)
    output: str
    layers: list[LoweredLayer]
    float_layers: list[FloatLayer]
    quantizers: list[QuantizerSite]


class BitsOfWork(_Open):
    """Bits, and the share of the multiply-accumulates in layers that have them; ``format`` as ``QuantizedLayer`` has it."""

    weight_bits: int
    activation_bits: int
    format: str | None = None
    share: float


class BuildCpu(_Open):
    """The CPU whose kernels an engine's report shows, and whether its INT8 kernels saturate."""

    int8_saturates: bool = False
    instructions: list[str] | None = None


class EngineFile(_Open):
    """One device's engine in the folder; a compute capability is like "8.9", None for a CPU."""

    compute_capability: str | None
    file: str
    report: str


class EngineDetails(GraphDetails):
    """``details`` of an engine (documented in engines/build.py), as far as reading it needs them."""

    backend: str
    version: str
    engines: list[EngineFile] = Field(min_length=1)
    batch: tuple[int, int, int]
    sizes: dict[str, tuple[int, int, int]] = Field(default_factory=dict)
    rows: dict[str, int] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    lint_allowed: dict[str, int] = Field(default_factory=dict)
    layer_bits: list[BitsOfWork] = Field(default_factory=list)
    output_spec: GraphOutput | None = None
    int8_without_vnni: bool = False
    built_on: BuildCpu | None = None
    bundle: str = "BUNDLE"
    checkpoint_sha256: str | None = None
    float_attention: list[str] = Field(default_factory=list)

    @property
    def capabilities(self) -> list[str]:
        """The compute capabilities that the engine was built for; none for a CPU."""
        return [entry.compute_capability for entry in self.engines if entry.compute_capability]


class MemberEntry(_Open):
    """A bundle or an engine in a schedule: its folder there, what its own folder was called, and the hash of its manifest."""

    folder: str
    name: str
    manifest_sha256: str


class ScheduleDetails(RunnableDetails):
    """``details`` of a schedule (written by engines/combine.py): its members, and the timesteps at which the next one takes over."""

    members: list[MemberEntry] = Field(min_length=2, max_length=3)
    switches: list[float]

    @model_validator(mode="after")
    def _one_between_two(self) -> ScheduleDetails:
        if problem := switches_problem(self.switches, len(self.members)):
            raise ValueError(problem)
        return self


def switches_problem(switches: Sequence[float], members: int) -> str | None:
    """What is wrong with the switches of a schedule of so many members; None: nothing."""
    shown = ", ".join(f"{switch:g}" for switch in switches) or "none"
    if not 2 <= members <= 3:
        return f"a schedule has two or three members, and {members} {'is' if members == 1 else 'are'} given"
    if len(switches) != members - 1:
        return f"{members} members take turns at {members - 1} timestep{'s' if members > 2 else ''}, and the switches given are {shown}"
    if not all(math.isfinite(switch) for switch in switches) or any(a <= b for a, b in pairwise(switches)):
        return f"switches must be finite and descend, as timesteps do in sampling, and they are {shown}"
    return None


class RepositoryDetails(_Open):
    """``details`` of a Triton repository (written by engines/triton.py)."""

    name: str
    backend: str
    kind: str
    max_batch_size: int
    dynamic_batching: bool


class PipelineFolderDetails(_Open):
    """``details`` of a whole pipeline's folder for another tool (written by engines/pipeline_folder).

    ``batch``: samples of a call of the denoiser, None where any number goes.
    """

    tool: str
    pipeline_class: str
    component: str
    batch: int | None = Field(default=None, ge=1)


class _Kind(NamedTuple):
    details: type[Details | RepositoryDetails | PipelineFolderDetails]
    made_by: str


_KINDS = {
    "checkpoint": _Kind(CheckpointDetails, "quantize SOURCE -o CHECKPOINT"),
    "bundle": _Kind(BundleDetails, "export CHECKPOINT -o BUNDLE --target TARGET"),
    "engine": _Kind(EngineDetails, "build-engine BUNDLE -o ENGINE --backend BACKEND"),
    "schedule": _Kind(ScheduleDetails, "combine MEMBER MEMBER --switch TIMESTEP -o SCHEDULE"),
    "triton-repository": _Kind(RepositoryDetails, "triton-repository ARTIFACT -o REPOSITORY"),
    "pipeline-folder": _Kind(PipelineFolderDetails, "pipeline-folder BUNDLE -o FOLDER --for TOOL"),
}


def parse_details(path: Path, manifest: Manifest) -> Any:
    """The manifest's details as the class of its kind; raises ArtifactError when it does not say what one of that kind must."""
    kind = _KINDS[manifest.kind]
    return as_record(
        manifest.details,
        kind.details,
        f"{path} is not a valid {manifest.kind} of this dq-deploy",
        hint=f"make it again with: dq-deploy {kind.made_by}",
    )
