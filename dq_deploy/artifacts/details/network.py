"""The float network: where it came from, how it is called, and the inputs and the output of its graph."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from ..records import Open, Record


class Place(Open):
    """Where a source lies that is the user's own: ``absolute`` (``~`` for the home folder), and as seen from the artefact."""

    absolute: str | None = None
    relative: str | None = None
    sha256: str


class Adapter(Place):
    """A LoRA file that was fused into the weights, or an IP-Adapter that was loaded, and how much it counts."""

    path: str
    scale: float


class Beside(Place):
    """The folder of a ControlNet that steers the model, or of the pipeline that the model, a ControlNet, steers."""

    path: str


class Origin(Place):
    """Where the float model came from, as the user typed it, and the hash of its weights."""

    reference: str
    lora: Adapter | None = None
    ip_adapter: Adapter | None = None
    controlnet: Beside | None = None
    pipeline: Beside | None = None


class Condition(Open):
    """Type and shape, without the batch, of a further input."""

    dtype: str
    shape: list[int]


class _Tree(Record):
    """One of its fields that say what it is, and no others."""

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


class CallArguments(Open):
    """Arguments of the network: what may be given by position, and the structure and constants of those that are not plain tensor."""

    parameters: list[str] = Field(min_length=1)
    timestep: str
    arguments: dict[str, ArgumentTree]
    defaults: dict[str, Any]


class NetworkCall(Open):
    """How a network is called; a part that is None needs no word (quantization/calling has the details)."""

    arguments: CallArguments | None
    output: OutputTree | None

    def record(self) -> dict[str, Any]:
        """As ``quantization.calling`` takes it: the trees are JSON values there too."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class GraphInput(Open):
    """An input of a graph; a dimension is a size or the name of a dynamic one."""

    name: str
    dtype: str | None
    shape: list[int | str]


class GraphOutput(Open):
    """The output of a graph; a dimension is a size, the name of a dynamic one, or None where it is unknown."""

    name: str
    dtype: str
    shape: list[int | str | None]
