"""A bundle that is watched while it runs: NaN in its output and before its quantizers, and codes at an end of their range, by timestep.

What a quantizer clips is at the end of its range, so a table that no longer fits what the network sees (another schedule, other prompts,
a fine-tuned adapter) shows as a share that grows. It is an upper bound on what was clipped: a value that falls on the last code is at the
end too, a ReLU's zeros are, and an attention's that are rounded to 0. Scales that are computed from the values fit whatever comes, and each
token's largest is on the last code: these quantizers' codes are not counted, their inputs are looked at like all others.

A quantizer makes a code of anything, and a NaN of before it is gone behind it: so its input is looked at, and not the output alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...artifacts import Artifact
from ...artifacts.details import BundleDetails, QuantizerSite
from ...artifacts.reading import read_ir, read_onnx
from ...errors import ArtifactError, UsageError
from ...exporters.cutting import named_values
from ...exporters.exact_sums import for_this_cpu
from ...exporters.session import session_as_written
from ...formats import INT8, NumberFormat, ScaleSource
from ...formats.tables import UINT8_OFFSET
from ..onnxruntime.descriptor import ONNXRUNTIME
from ..onnxruntime.runner import DTYPES
from ..running.finite import Nonfinite, checked
from ..running.lookup_tables import entries_in_onnx
from ..running.runner import TIMESTEP, Array, GraphRunner, InputSpec

_MOST_BYTES = 1 << 31


class WatchRow(BaseModel):
    """One timestep that was run: samples, the share of output elements that are NaN or infinite, the share of codes at an end of their
    range over all quantizers, and the quantizer with the most such codes. ``not_finite_inputs`` counts NaN and infinity at the quantizers'
    inputs, and ``first_not_finite`` is the first quantizer of the graph that has any.
    """  # noqa: D205

    model_config = ConfigDict(extra="forbid")
    timestep: float
    samples: int
    not_finite_share: float
    at_end_share: float
    worst_quantizer: str | None
    worst_share: float
    not_finite_inputs: int = 0
    first_not_finite: str | None = None


@dataclass(frozen=True)
class _Site:
    """A quantizer: the values that it reads and gives, and the ends of the range of its codes; None where the range follows the values."""

    name: str
    input: str
    codes: str
    ends: tuple[float, float] | None


@dataclass
class _Counts:
    samples: int = 0
    outputs: int = 0
    not_finite: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    at_end: dict[str, int] = field(default_factory=dict)
    not_finite_inputs: dict[str, int] = field(default_factory=dict)


class WatchedRunner(GraphRunner):
    """A quantized bundle in onnxruntime whose codes are outputs too. Slower than without: nothing is fused, and every code is looked at.

    ``nonfinite`` is what happens to samples with NaN or infinity (finite.py). Here they propagate by default: who watches looks for them.

    Raises UsageError (a float bundle, which has no codes), ArtifactError (a graph without the values that its manifest names, or too large
    to be passed in memory) and EnvironmentProblem (no onnxruntime).
    """

    name = ONNXRUNTIME.name
    each_timestep = True

    def __init__(self, bundle: Artifact[BundleDetails], *, threads: int | None = None, nonfinite: Nonfinite = "propagate") -> None:
        self.nonfinite = checked(nonfinite)
        details = bundle.details
        if not details.quantizers:
            raise UsageError(f"{bundle.path} has no quantizers to watch", "give a quantized bundle, which onnxruntime runs")
        formats = {name: layer.activation_format for layer in details.layers for name in layer.quantizers}
        self._sites = [_Site(site.name, site.input, site.codes, _ends(site, formats.get(site.name, INT8))) for site in details.quantizers]
        self._session = _session(bundle, list(dict.fromkeys(value for site in self._sites for value in (site.codes, site.input))), threads)
        entries = entries_in_onnx(read_onnx(bundle.file("model.onnx")))
        self.specs = tuple(_spec(value, entries.get(value.name)) for value in self._session.get_inputs())
        self._counts: dict[float, _Counts] = {}
        self.details: dict[str, Any] = {"engine": self.name, "provider": "CPUExecutionProvider", "optimized": False, "watched": True}

    def report(self) -> list[WatchRow]:
        """A row for every timestep so far, in ascending order."""
        return [_row(timestep, counts) for timestep, counts in sorted(self._counts.items())]

    def _infer(self, feeds: dict[str, Array]) -> Array:
        timestep = float(feeds[TIMESTEP].reshape(-1)[0])
        names = [value.name for value in self._session.get_outputs()]
        values = dict(zip(names, self._session.run(names, feeds), strict=True))
        output: Array = values[names[0]]
        counts = self._counts.setdefault(timestep, _Counts())
        counts.samples += len(output)
        counts.outputs += output.size
        counts.not_finite += int((~np.isfinite(output)).sum())
        values |= feeds  # a quantizer may read an input of the graph itself
        for site in self._sites:
            if site.ends is not None:
                array, (low, high) = values[site.codes], site.ends
                _add(counts.codes, site.name, array.size)
                _add(counts.at_end, site.name, int(((array <= low) | (array >= high)).sum()))
            _add(counts.not_finite_inputs, site.name, int((~np.isfinite(values[site.input])).sum()))
        return output


def _add(counts: dict[str, int], name: str, more: int) -> None:
    counts[name] = counts.get(name, 0) + more


def _spec(value: Any, entries: int | None) -> InputSpec:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return InputSpec(value.name, shape, np.dtype(DTYPES[value.type]), entries=entries)


def _ends(site: QuantizerSite, fmt: NumberFormat) -> tuple[float, float] | None:
    if site.source is ScaleSource.COMPUTED:
        return None
    low, high = fmt.code_range()
    return (low + UINT8_OFFSET, high + UINT8_OFFSET) if site.code_type == "UINT8" else (low, high)


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
        not_finite_inputs=sum(counts.not_finite_inputs.values()),
        first_not_finite=next((name for name, count in counts.not_finite_inputs.items() if count), None),
    )


def _session(bundle: Artifact, requested: list[str], threads: int | None) -> Any:
    """The graph with further outputs, as it is written: a fused layer gives no codes."""
    import onnx_ir as ir

    model = read_ir(bundle.file("model.onnx"), listed=bundle.manifest.files)
    values = named_values(bundle, model.graph, requested).values()
    model.graph.outputs.extend(value for value in values if not value.is_graph_input())
    ir.external_data.load_to_model(model)
    for_this_cpu(model)
    content = ir.to_proto(model)
    if content.ByteSize() >= _MOST_BYTES:
        raise ArtifactError(f"{bundle.path} has 2 GiB or more: it cannot be watched", "watch a smaller model of the same kind")
    return session_as_written(content.SerializeToString(), threads=threads)
