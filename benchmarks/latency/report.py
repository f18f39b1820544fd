"""RESULTS.md from the recorded models: speeds first, then targets, then where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .timing import PICTURE_STEPS, PICTURES

_UNETS = ("unet", "unet-6m", "unet-86m")
_NNCF = "OpenVINO, NNCF static INT8"
_OURS = ("ours on ONNX Runtime", "ours on OpenVINO", "ours on OpenVINO, W6A6")
Results = Mapping[str, dict[str, Any]]


def page(results: Results) -> str:
    """The page; models that were not measured are left out."""
    first = next(iter(results.values()))
    machine = first["machine"]
    vnni = any("vnni" in name for name in machine["instructions"])
    here = (
        ""
        if vnni
        else " **This CPU has no VNNI**: 8-bit products have no fast exact instruction here, and the targets are for CPUs that have one."
    )
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [
        f"""# Latency

`python -m benchmarks.latency`: every contender of a model in one run, interleaved round by round in random order. Speeds are medians of
the rounds' ratios against ONNX Runtime in float (above 1 is faster), with the 95% bootstrap interval. SNR is against that baseline's
output on trajectories that nobody was calibrated on: the median over 10 timesteps, and the worst of them. Calibration is cheap and the same
for all, 4 trajectories; ours are neither dilated nor trained here (benchmarks/accuracy measures that, and pictures), and the 6M and 86M
UNets have random weights. Ours are W8A8 where nothing else is said. OpenVINO's models, ours and others', are compiled at each batch's
shape; ours are rewritten for its kernels first, as our runner does it ([decision](../../docs/decisions/openvino-rewrites.md)). A CPU
without VNNI, before that: [RESULTS-avx2.md](RESULTS-avx2.md).

{machine["cpu"]}, {", ".join(machine["instructions"])}, {first["threads"]} thread(s) for every contender; {versions}.{here}
{first["note"]}
"""
    ]
    parts += [_model(name, result) for name, result in results.items()]
    parts.append("## Targets\n\n" + "\n".join(_targets(results)) + "\n")
    parts += [_pictures(name, result["pictures"]) for name, result in results.items() if result.get("pictures")]
    parts.append(_profiles(results))
    return "\n".join(part for part in parts if part)


def _model(name: str, result: dict[str, Any]) -> str:
    batches = result["settings"]["batches"]
    rows = {(row["contender"], row["batch"]): row for row in result["rows"]}
    lines = [f"## {name}: {result['parameters'] / 1e6:.1f}M parameters, {result['settings']['runs']} rounds", ""]
    lines.append("| contender | " + " | ".join(f"speed, batch {batch} | ms" for batch in batches) + " | SNR dB: median | worst |")
    lines.append("|---|" + "---:|---:|" * len(batches) + "---:|---:|")
    for contender in dict.fromkeys(row["contender"] for row in result["rows"]):
        found = [rows[contender, batch] for batch in batches]
        cells = [f"{1 / r['ratio']:.2f} ({1 / r['ratio_high']:.2f}–{1 / r['ratio_low']:.2f}) | {r['median_ms']:.1f}" for r in found]
        snr = [f"{result['snr'][contender][which]:.1f}" if contender in result["snr"] else "–" for which in ("median", "worst")]
        lines.append(f"| {contender} | " + " | ".join([*cells, *snr]) + " |")
    return "\n".join(lines) + "\n"


def _targets(results: Results) -> list[str]:
    lines = []
    for name in (n for n in _UNETS if n in results):
        speeds = {(row["contender"], row["batch"]): 1 / row["ratio"] for row in results[name]["rows"]}
        for batch, required in ((1, 2.2), (8, 2.5)):
            ours = {who: speeds[who, batch] for who in _OURS if (who, batch) in speeds}
            if ours:
                best = max(ours, key=ours.__getitem__)
                met = _verdict(ours[best] >= required)
                lines.append(f"- {name}, batch {batch}: ≥ {required} × ONNX Runtime in float: {met}, {ours[best]:.2f} ({best}).")
                lines.append(f"- {name}, batch {batch}: " + _against_nncf(ours, speeds[_NNCF, batch], results[name]["snr"]))
    for name, result in results.items():
        lines += [
            f"- {name}, batch {pair['batch']}: per-timestep over static scales ({pair['kernels']}): {_verdict(pair['high'] < 1.05)}, "
            f"time ratio {pair['value']:.3f} ({pair['low']:.3f}–{pair['high']:.3f}), required below 1.05."
            for pair in result["static_pairs"]
        ]
        if start := result.get("startup"):
            ratio = start["export_s"] / start["bare_export_s"]
            least = start["help_s_least"]
            lines.append(f"- `dq-deploy --help` ≤ 0.3 s: {_verdict(start['help_s'] <= 0.3)}, {start['help_s']:.2f} s (least {least:.2f}).")
            lines.append(
                f"- {name}: export ≤ 1.5 × a bare `torch.onnx.export` of the float model: {_verdict(ratio <= 1.5)}, {ratio:.2f} "
                f"({start['export_s']:.1f} s and {start['bare_export_s']:.1f} s)."
            )
        if pictures := result.get("pictures"):
            best = max(row["speed"] for row in pictures["rows"] if row["name"] != "PyTorch eager")
            lines.append(f"- {name}: pictures per second ≥ 3 × PyTorch eager: {_verdict(best >= 3)}, {best:.2f} ×.")
    return lines


def _against_nncf(ours: Mapping[str, float], theirs: float, snr: Mapping[str, dict[str, float]]) -> str:
    """The fastest of ours that is better than NNCF, or the fastest of all if none is."""
    better = {who: speed for who, speed in ours.items() if snr[who]["median"] > snr[_NNCF]["median"]}
    best = max(better or ours, key=ours.__getitem__)
    ratio = ours[best] / theirs
    return (
        f"≥ 1.2 × NNCF at better quality: {_verdict(bool(better) and ratio >= 1.2)}, {ratio:.2f} × at {snr[best]['median']:.1f} dB "
        f"against {snr[_NNCF]['median']:.1f} dB ({best})."
    )


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def _pictures(name: str, found: dict[str, Any]) -> str:
    lines = [f"## {name}: pictures through the diffusers pipeline, T = {PICTURE_STEPS}, {PICTURES} at a time", ""]
    lines += ["| model in the pipeline | pictures per second | × eager |", "|---|---:|---:|"]
    for row in found["rows"]:
        key = row["name"].removeprefix("ours, ").removesuffix(" bundle")
        engine = f" on {found['engines'][key]}" if key in found["engines"] else ""
        lines.append(f"| {row['name']}{engine} | {row['pictures_per_s']:.2f} | {row['speed']:.2f} |")
    return "\n".join(lines) + "\n"


def _profiles(results: Results) -> str:
    lines = ["## Where OpenVINO's time goes, batch 1", ""]
    for name, result in results.items():
        for title, kernels in result["profiles"].items():
            total = sum(kernel["ms"] for kernel in kernels)
            shown = "; ".join(f"{kernel['ms']:.2f} ms in {kernel['count']} {kernel['kernel']}" for kernel in kernels)
            lines.append(f"- {name}, {title}: {shown} (these: {total:.1f} ms).")
    return "\n".join(lines) + "\n"
