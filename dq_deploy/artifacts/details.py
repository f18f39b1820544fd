"""What the manifest's ``details`` of a checkpoint and of a bundle must hold: judged once, when the artefact is opened.

Those of an engine are in ``engines/engine_files.py``. More keys than these are let through: they are for people.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .final_error import FinalError
from .manifest import Manifest
from .reading.plain import as_record

_MADE_BY = {"checkpoint": "quantize SOURCE -o CHECKPOINT", "bundle": "export CHECKPOINT -o BUNDLE --target TARGET"}
Target = Literal["tensorrt", "onnxruntime"]


class _Open(BaseModel):
    """More keys may be there."""

    model_config = ConfigDict(extra="allow", frozen=True)


class FloatLayer(_Open):
    """A product that is not quantized, and why; ``macs`` are multiply-accumulates per sample."""

    name: str
    op: str
    macs: int = Field(ge=0)
    reason: str


class QuantizedLayer(_Open):
    """A quantized product: its bits, and the quantizers that it reads."""

    name: str
    op: str
    macs: int = Field(ge=0)
    weight_bits: int | None = Field(default=None, ge=2, le=8)
    quantizers: list[str]


class LoweredLayer(QuantizedLayer):
    """The same in a graph: ``output`` is a value's name, ``input`` too where its activations stay float."""

    output: str
    input: str | None = None
    weight_storage: str | None = None


class QuantizerEntry(_Open):
    """An activation quantizer of a checkpoint and the layers that read it."""

    name: str
    layers: list[str]


class QuantizerSite(_Open):
    """A quantizer where a graph has it: the values that it reads and gives, and how it pads."""

    name: str
    input: str
    codes: str
    pads: list[int]
    code_type: Literal["INT8", "UINT8"]


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
    """Arguments of the network: what may be given by position, and the structure and constants of those that are no plain tensor."""

    parameters: list[str] = Field(min_length=1)
    timestep: str
    arguments: dict[str, ArgumentTree]
    defaults: dict[str, Any]


class NetworkCall(_Open):
    """How a network is called; a part that is None needs no word (quantization/calling has the details)."""

    arguments: CallArguments | None
    output: OutputTree | None


class GraphInput(_Open):
    """An input of a graph; a dimension is a size or the name of a dynamic one."""

    name: str
    dtype: str | None
    shape: list[int | str]


class Place(_Open):
    """Where a source lies that is the user's own: ``absolute`` (``~`` for the home folder), and as seen from the artefact."""

    absolute: str | None = None
    relative: str | None = None
    sha256: str


class Adapter(Place):
    """A LoRA file that was fused into the weights."""

    path: str
    scale: float


class Origin(Place):
    """Where the float model came from, as the user typed it, and the hash of its weights."""

    reference: str
    lora: Adapter | None = None


class BlockLoss(_Open):
    """A distilled block's loss before and after."""

    block: str
    before: float
    after: float


class _Shared(_Open):
    component: str | None
    pipeline_class: str | None
    # "model_" is pydantic's own prefix.
    model_config_of_source: dict[str, Any] | None = Field(alias="model_config")
    sample_shape: list[int | str] = Field(min_length=1)
    picture_size: dict[Literal["height", "width", "num_frames"], int] = Field(default_factory=dict)
    call: NetworkCall | None = None
    source: Origin | None
    float_layers: list[FloatLayer]


class CheckpointDetails(_Shared):
    """``details`` of a checkpoint (written by quantization/pipeline.py)."""

    inputs: list[str] = Field(min_length=1)
    conditions: dict[str, Condition]
    samples_per_seed: int = Field(ge=1)
    layers: list[QuantizedLayer]
    quantizers: list[QuantizerEntry]
    float_mac_share: float = Field(ge=0, le=1)
    snr_db: dict[str, list[float]]
    # Without these two: a checkpoint from before they were measured.
    final_error: FinalError | None = None
    clipped: dict[str, list[float]] = Field(default_factory=dict)
    distillation: list[BlockLoss]
    dilation: list[dict[str, Any]]


class BundleDetails(_Shared):
    """``details`` of a bundle (written by exporters/bundle.py)."""

    target: Target
    dtype: Literal["fp32", "fp16", "bf16"]
    float: bool
    attention: Literal["int8", "float"] = "int8"
    convolutions: Literal["auto", "integer", "float"] | None = None
    float_convolutions: list[str] = Field(default_factory=list)
    inputs: list[GraphInput] = Field(min_length=1)
    output: str
    layers: list[LoweredLayer]
    quantizers: list[QuantizerSite]


_DETAILS: dict[str, type[_Shared]] = {"checkpoint": CheckpointDetails, "bundle": BundleDetails}


def check_details(path: Path, manifest: Manifest) -> None:
    """Raise ArtifactError when a checkpoint's or a bundle's manifest does not say what one must."""
    if model := _DETAILS.get(manifest.kind):
        hint = f"make it again with: dq-deploy {_MADE_BY[manifest.kind]}"
        as_record(manifest.details, model, f"the manifest of {path} is not one of a {manifest.kind}: details", hint=hint)
