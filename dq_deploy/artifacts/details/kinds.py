"""The ``details`` of each kind of artefact."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from ...formats import ScaleSource
from ...formats.target import target_name
from ..final_error import FinalError
from ..manifest import Manifest
from ..reading.plain import as_record
from ..records import Open
from .findings import (
    BlockLoss,
    CalibratedSize,
    CalibrationRecord,
    DilatedInput,
    DilationRule,
    FormatChoice,
    FreeDimension,
    GivenPictures,
    KeptState,
    RefitRecord,
    RotatedInput,
    RoundedLayer,
    ScaleChoice,
    SkipHalvesRecord,
    WidthChoice,
    WidthRecord,
)
from .layers import BitsOfWork, FloatLayer, LoweredLayer, QuantizedLayer, QuantizerEntry, QuantizerSite
from .network import Condition, GraphInput, GraphOutput, NetworkCall, Origin

Target = Annotated[Literal["qdq", "onnxruntime", "tensorrt"], AfterValidator(target_name)]
"""``tensorrt`` is a former name, and read as that of today."""


class Details(Open, ABC):
    """What every artefact of a model has."""

    component: str | None = None
    pipeline_class: str | None = None
    # "model_" is pydantic's own prefix.
    network_config: dict[str, Any] | None = Field(default=None, alias="model_config")
    sample_shape: list[int] = Field(min_length=1)
    picture_size: dict[Literal["height", "width", "num_frames", "max_sequence_length"], int] = Field(default_factory=dict)
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
    def chosen(self) -> dict[str, FreeDimension]:
        """Free dimensions that can be chosen: those that follow no other."""
        return {name: free for name, free in self.free.items() if free.of is None}

    def unit(self, name: str) -> str:
        """What a free dimension's sizes count, where pictures were asked for in other units: "latents, of 8 pixels each"."""
        edge = ("height", "width").index(name) if name in ("height", "width") else None
        size = self.calibrated_sizes[0].size if self.calibrated_sizes else None
        if edge is None or size is None or name not in self.free:
            return ""
        pixels, rest = divmod(size[edge], self.free[name].values[0])
        return f"latents, of {pixels} pixels each" if pixels > 1 and not rest else ""

    @property
    def call_record(self) -> dict[str, Any] | None:
        """How the network is called, as ``quantization.calling`` takes it."""
        return self.call.record() if self.call else None


class CheckpointDetails(Details):
    """``details`` of a checkpoint."""

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
    kept_state: KeptState | None = None
    dilation: list[DilatedInput]
    dilation_rule: DilationRule
    scale_choices: list[ScaleChoice] = Field(default_factory=list)
    format_choices: list[FormatChoice] = Field(default_factory=list)
    rotation: list[RotatedInput] = Field(default_factory=list)
    widths: list[WidthRecord] = Field(default_factory=list)
    refit: RefitRecord | None = None

    @property
    def branched(self) -> list[str]:
        """The layers that have a low-rank branch in float beside them."""
        return [layer.name.removesuffix("#down") for layer in self.float_layers if layer.name.endswith("#down")]

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
        """How many of the quantizers compute a scale for each token, and how many of these a zero-point, in words."""
        computed = [entry for entry in self.quantizers if entry.source is ScaleSource.COMPUTED and not entry.block]
        shifted = sum(entry.zero_points for entry in computed)
        return f"{len(computed)} of {len(self.quantizers)} quantizers" + (f", {shifted} with zero-points" if shifted else "")

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
    def rounded_as(self) -> str:
        """How weights were rounded by what their inputs are."""
        fitted = sum(layer.weight_codebook is not None for layer in self.layers)
        if not fitted:
            return "by GPTQ"
        return "to codebooks" if fitted == len(self.rounding or ()) else "to codebooks or by GPTQ"

    @property
    def rounding_summary(self) -> str:
        """How many layers were rounded by what their inputs are, and what that was worth before any training, in a line."""
        if not self.rounding:
            return "none"
        middle = median(layer.error_ratio for layer in self.rounding)
        fitted = sum(layer.weight_codebook is not None for layer in self.layers)
        which = f"{len(self.rounding)} of {len(self.layers)} layers" + (f", {fitted} of them to codebooks" if fitted else "")
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

    ``width``: bits to which the checkpoint's weights were sliced, all of those that can be, or each by its layer, as ``width_choice`` says.
    ``float_convolutions``: names of those that the export left in float. ``weight_storage``: "int8" where every weight was asked
    to take a byte. ``refit_of``: of a refitted checkpoint's, the hash of the checkpoint that was refitted.
    """

    target: Target
    dtype: Literal["fp32", "fp16", "bf16"]
    float: bool
    # Bundles from before there was a choice for each engine say nothing, and have these products in INT8 everywhere.
    attention: Literal["auto", "int8", "float"] = "int8"
    float_convolutions: list[str] = Field(default_factory=list)
    width: int | dict[str, int] | None = None
    width_choice: WidthChoice | None = None
    weight_storage: Literal["int8"] | None = None
    refit_of: str | None = None
    # Samples that the network sees at once for one image; of bundles from before it was said, one.
    samples_per_image: int = Field(default=1, ge=1)


class BundleDetails(GraphDetails):
    """``details`` of a bundle.

    ``kept_fp32``, in fp16: parts of the float network that fp16 cannot hold (after which layer, how many values, the largest, constants).
    """

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


class BuildCpu(Open):
    """The CPU whose kernels an engine's report shows, and whether its INT8 kernels saturate."""

    int8_saturates: bool = False
    instructions: list[str] | None = None


class FurtherProfile(Open):
    """What an engine runs in a further optimization profile; the layer report is of the first."""

    kernels: int
    planned_layers: int
    as_planned: int


class EngineFile(Open):
    """One device's engine in the folder; a compute capability is like "8.9", None for a CPU."""

    compute_capability: str | None
    file: str
    report: str
    further_profiles: list[FurtherProfile] = Field(default_factory=list)


class EngineDetails(GraphDetails):
    """``details`` of an engine, as far as reading it needs them.

    ``batch`` and the ``sizes`` of every other dynamic dimension are (min, opt, max), of all ``profiles`` together. ``rows``: by input, the
    entries of the table that it selects from. ``lint_allowed``: rules of the lint that the user let pass, with how often the graph breaks
    them. ``bundle``: where that was, to build the engine again, and ``checkpoint_sha256`` what it can be checked against.
    ``float_attention``: the quantized products of attention that it takes in float, in one kernel with the softmax.
    """

    backend: str
    version: str
    engines: list[EngineFile] = Field(min_length=1)
    batch: tuple[int, int, int]
    sizes: dict[str, tuple[int, int, int]] = Field(default_factory=dict)
    profiles: list[dict[str, tuple[int, int, int]]] = Field(default_factory=list)
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


class MemberEntry(Open):
    """A bundle or an engine in a schedule: its folder there, what its own folder was called, and the hash of its manifest."""

    folder: str
    name: str
    manifest_sha256: str


class ScheduleDetails(RunnableDetails):
    """``details`` of a schedule: its members, and the timesteps at which the next one takes over."""

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


class RepositoryDetails(Open):
    """``details`` of a Triton repository."""

    name: str
    backend: str
    kind: str
    max_batch_size: int
    dynamic_batching: bool


class PipelineFolderDetails(Open):
    """``details`` of a whole pipeline's folder for another tool.

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
