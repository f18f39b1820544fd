"""A bundle that is watched while it runs: NaN in its output, and how many of its codes are at an end of their range, by timestep.

What a quantizer clips is at the end of its range, so a table that no longer fits what the network sees (another schedule, other prompts,
a fine-tuned adapter) shows as a share that grows. It is an upper bound on what was clipped: a value that falls on the last code is at the
end too, a ReLU's zeros are, and an attention's that are rounded to 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..artifacts import Artifact
from ..artifacts.reading import read_ir
from ..errors import ArtifactError, EnvironmentProblem, UsageError
from .runner import TIMESTEP, Array, InputSpec, bind_inputs

_UINT8_OFFSET = 128
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_MOST_BYTES = 1 << 31


class WatchRow(BaseModel):
    """One timestep that was run: samples, the share of output elements that are NaN or infinite, the share of codes at an end of their
    range over all quantizers, and the quantizer with the most such codes.
    """  # noqa: D205

    model_config = ConfigDict(extra="forbid")
    timestep: float
    samples: int
    not_finite_share: float
    at_end_share: float
    worst_quantizer: str | None
    worst_share: float


@dataclass
class _Counts:
    samples: int = 0
    outputs: int = 0
    not_finite: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    at_end: dict[str, int] = field(default_factory=dict)


class WatchedRunner:
    """A quantized bundle in onnxruntime whose codes are outputs too. Slower than without: nothing is fused, and every code is looked at.

    Raises UsageError (a float bundle, which has no codes), ArtifactError (a graph without the values that its manifest names, or too large
    to be handed over in memory) and EnvironmentProblem (no onnxruntime).
    """

    name = "onnxruntime"

    def __init__(self, bundle: Artifact, *, threads: int | None = None) -> None:
        details = bundle.manifest.details
        if bundle.manifest.kind != "bundle" or not details["quantizers"]:
            raise UsageError(f"{bundle.path} has no quantizers to watch", "give a quantized bundle, which onnxruntime runs")
        bits = {name: layer["activation_bits"] for layer in details["layers"] for name in layer["quantizers"]}
        self._sites = [
            (q["name"], q["codes"], _ends(bits.get(q["name"]) or 8, unsigned=q["code_type"] == "UINT8")) for q in details["quantizers"]
        ]
        self._session = _session(bundle, list(dict.fromkeys(codes for _, codes, _ in self._sites)), threads)
        self.specs = tuple(
            InputSpec(v.name, tuple(size if isinstance(size, int) else None for size in v.shape), np.dtype(_FLOATS.get(v.type, np.int64)))
            for v in self._session.get_inputs()
        )
        self._counts: dict[float, _Counts] = {}
        self.details: dict[str, Any] = {"engine": self.name, "provider": "CPUExecutionProvider", "optimized": False, "watched": True}

    def run(self, inputs: Mapping[str, Array]) -> Array:
        """Run one batch, a timestep at a time (see ``Runner.run``)."""
        feeds = bind_inputs(self.specs, inputs)
        steps = feeds[TIMESTEP]
        one = next(spec.shape for spec in self.specs if spec.name == TIMESTEP) == (1,)
        batched = {spec.name for spec in self.specs if spec.batched} | {TIMESTEP}
        whole: Array | None = None
        for value in np.unique(steps):
            rows = np.flatnonzero(steps == value)
            part = {name: array[rows] if name in batched else array for name, array in feeds.items()}
            output = self._watch(float(value), {**part, TIMESTEP: part[TIMESTEP][:1]} if one else part)
            whole = np.empty((len(steps), *output.shape[1:]), output.dtype) if whole is None else whole
            whole[rows] = output
        assert whole is not None
        return whole

    def report(self) -> list[WatchRow]:
        """A row for every timestep so far, in ascending order."""
        return [_row(timestep, counts) for timestep, counts in sorted(self._counts.items())]

    def _watch(self, timestep: float, feeds: dict[str, Array]) -> Array:
        names = [value.name for value in self._session.get_outputs()]
        values = dict(zip(names, self._session.run(names, feeds), strict=True))
        output: Array = values[names[0]]
        counts = self._counts.setdefault(timestep, _Counts())
        counts.samples += len(output)
        counts.outputs += output.size
        counts.not_finite += int((~np.isfinite(output)).sum())
        for quantizer, codes, (low, high) in self._sites:
            array = values[codes]
            counts.codes[quantizer] = counts.codes.get(quantizer, 0) + array.size
            counts.at_end[quantizer] = counts.at_end.get(quantizer, 0) + int(((array <= low) | (array >= high)).sum())
        return output


def _ends(bits: int, *, unsigned: bool) -> tuple[int, int]:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return (low + _UINT8_OFFSET, high + _UINT8_OFFSET) if unsigned else (low, high)


def _row(timestep: float, counts: _Counts) -> WatchRow:
    shares = {name: counts.at_end[name] / counts.codes[name] for name in counts.codes if counts.codes[name]}
    # By count: of the few values of a timestep's embedding, the largest is always on the last code.
    worst = max(shares, key=lambda name: counts.at_end[name], default=None)
    return WatchRow(
        timestep=timestep,
        samples=counts.samples,
        not_finite_share=counts.not_finite / max(counts.outputs, 1),
        at_end_share=sum(counts.at_end.values()) / max(sum(counts.codes.values()), 1),
        worst_quantizer=worst,
        worst_share=shares[worst] if worst else 0.0,
    )


def _session(bundle: Artifact, wanted: list[str], threads: int | None) -> Any:
    """The graph with further outputs, as it is written: a fused layer gives no codes."""
    import onnx_ir as ir

    try:
        import onnxruntime
    except ImportError:
        raise EnvironmentProblem("onnxruntime is not installed", 'pip install "dq-deploy[cpu]"') from None
    model = read_ir(bundle.file("model.onnx"), listed=bundle.manifest.files)
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    if missing := [name for name in wanted if name not in values]:
        raise ArtifactError(f"{bundle.path}: the graph has no value {', '.join(missing[:5])}, which its manifest names", "export it again")
    model.graph.outputs.extend(values[name] for name in wanted)
    ir.external_data.load_to_model(model)
    content = ir.to_proto(model)
    if content.ByteSize() >= _MOST_BYTES:
        raise ArtifactError(f"{bundle.path} has 2 GiB or more: it cannot be watched", "watch a smaller model of the same kind")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
