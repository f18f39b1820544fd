"""Reads the kernel list that TensorRT's builder prints into its verbose log.

An engine built for another GPU cannot be deserialized, so its inspector is out of reach; the log is the only source that every build has.
With ``ProfilingVerbosity.DETAILED`` it holds, after a line ``Layers:``, one line for each kernel:

    Name: fc1/MatMul_myl0_6, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,16], ..., Datatype: Int8, Format: ... }],
    Constants: [ ... ], Outputs: [ ... ], TacticName: ..., StreamId: 0, Metadata: [ONNX Layer: fc1/MatMul][ONNX Layer: fc1/DQ]

Kernels of an engine's second optimization profile have ``[profile 1]`` in a name or an operand, or at least one of their group
(``_myl1_`` in the names of TensorRT-RTX) has.

``Metadata`` names the ONNX nodes that went into the kernel, and the parser's lines ``Parsing node: fc1/MatMul [MatMul]`` say what each
node is. Everything here works on text alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..layer_report.kernels import Kernel, LayerDump, Tensor

_ANSI = re.compile(r"\x1b\[[0-9;]*m")  # polygraphy colours its lines where the package `colored` is installed
_PREFIX = re.compile(r"^\[[^\]]{1,2}\] ")  # polygraphy's severity: [E], [W], [I], [V], [X]
_HEADING = re.compile(r"^(?:\[[^\]]{1,2}\] )?Layers:$")
_KERNEL = re.compile(
    r"^\s+Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: (?P<inputs>\[.*?\])(?:, Constants: (?P<constants>\[.*?\]))?"
    r", Outputs: (?P<outputs>\[.*?\])(?:, (?:ParameterType|TacticName|TacticValue|StreamId|Metadata): .*)?$"
)
_TENSOR = re.compile(r"\{ ?Name: .*?, (?:Location: \w+, )?Dimensions: \[(?P<shape>[^\]]*)\](?P<rest>.*?)\}(?=[,\]])")
_DATATYPE = re.compile(r"(?:Format/)?Datatype: (?P<name>[^,}]*)")
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]?\[ONNX Layer: |[\x1e\x1f\s]*$)")
_PROFILE = re.compile(r"\[profile (\d+)\]")
_GROUP = re.compile(r"_myl(\d+)_\d+$")
_PARSED_NODE = re.compile(r"^(?:\[[^\]]{1,2}\] )?Parsing node: (?P<name>.+) \[(?P<op>[\w.:]+)\]$", re.MULTILINE)
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")

# The enterprise TensorRT lists a convolution's weights so, RTX among the constants.
_CONV_WEIGHTS = re.compile(r', Weights: \{"Type": "(?P<type>\w+)", "Count": (?P<count>\d+)\}')
# Spellings of TensorRT and TensorRT-RTX: alone ("Half"), or in a format's description ("Channel major FP16 format where channel % 8 == 0").
_DTYPES = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "fp8": "fp8",
    "int8": "int8",
    "int4": "int4",
    "fp4": "fp4",
    "fp4e2m1": "fp4",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}


def parse_dump(log: str) -> LayerDump | None:
    """Parse a builder's verbose log; None when it does not hold the complete kernel list (the build ended early)."""
    log = _ANSI.sub("", log)
    kernels = tuple(_kernels(log))
    weights = _WEIGHTS.findall(log)
    if not kernels or not weights:
        return None
    operators = {match["name"]: match["op"] for match in _PARSED_NODE.finditer(log)}
    activations = _ACTIVATIONS.findall(log)
    return LayerDump(
        kernels=kernels, operators=operators, weights_bytes=int(weights[-1]), activation_bytes=int(activations[-1]) if activations else None
    )


def _kernels(log: str) -> Iterator[Kernel]:
    """Kernels after the last ``Layers:`` heading; none at all when one of its lines cannot be read, since a partial list would mislead."""
    lines = log.split("\n")  # splitlines would also split at the \x1e that separates the nodes
    starts = [number for number, line in enumerate(lines) if _HEADING.match(line)]
    if not starts:
        return
    found: list[tuple[Kernel, str]] = []
    for line in lines[starts[-1] + 1 :]:
        if not line.strip() or _PREFIX.match(line):
            break
        match = _KERNEL.match(line)
        if match is None:
            return
        found.append((_kernel(match, line), line))
    yield from _by_profile(found)


def _by_profile(found: list[tuple[Kernel, str]]) -> Iterator[Kernel]:
    """The kernels, each with the number of its profile."""
    groups: dict[str, int] = {}
    for kernel, line in found:
        if said := _PROFILE.search(line):
            groups[_group(kernel)] = int(said[1])
    for kernel, _ in found:
        number = groups.get(_group(kernel), 0)
        yield kernel.model_copy(update={"profile": number}) if number else kernel


def _group(kernel: Kernel) -> str:
    """What is compiled together; a kernel that says nothing of it is alone."""
    match = _GROUP.search(kernel.name)
    return match[1] if match else kernel.name


def _kernel(match: re.Match[str], line: str) -> Kernel:
    constants = _tensors(match["constants"] or "")
    if weights := _CONV_WEIGHTS.search(line):
        constants += (Tensor(dtype=dtype_of(weights["type"]), shape=(int(weights["count"]),)),)
    return Kernel(
        name=match["name"],
        type=match["type"],
        inputs=_tensors(match["inputs"]),
        constants=constants,
        outputs=_tensors(match["outputs"]),
        nodes=onnx_nodes(line.rpartition(", Metadata: ")[2]),
    )


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """Names of the ONNX nodes that went into a kernel."""
    return tuple(_ONNX_NODE.findall(metadata))


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(dtype=_dtype(match["rest"]), shape=_shape(match["shape"])) for match in _TENSOR.finditer(text))


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size.strip())


def _dtype(text: str) -> str:
    match = _DATATYPE.search(text)
    return dtype_of(match["name"]) if match else "unknown"


def dtype_of(description: str) -> str:
    """A number format's name of ours, from one of TensorRT's or from its description of a tensor."""
    words = re.findall(r"\w+", description.lower())
    return next((_DTYPES[word] for word in words if word in _DTYPES), "-".join(words) or "unknown")
