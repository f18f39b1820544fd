"""What decides a cell's figures: its configuration, the model's weights, the code. Anything else may change and the figures stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dq_deploy.artifacts import sha256_json

from .code_hash import peers_sha256, quantization_sha256
from .confirmed import SameCode
from .methods import NAMES, UNJUDGED, canonical, method
from .results import CellResult
from .settings import FLOAT, Cell, Family, Settings, Tier

State = Literal["missing", "done", "stale"]
OTHER_CODE = "other code"
_NOTHING_CONFIRMED = SameCode()


@dataclass(frozen=True)
class Identity:
    """``config`` is the canonical configuration of a method, or an outside tool's settings."""

    config: dict[str, Any]
    model_sha256: str
    code_sha256: str

    @property
    def sha256(self) -> str:
        """One hash over it all."""
        return sha256_json([self.config, self.model_sha256, self.code_sha256])


def identity(cell: Cell, settings: Settings, *, model_sha256: str, family: Family) -> Identity:
    """The identity that a cell would have if it were measured now."""
    if cell.method == FLOAT:
        return Identity({"steps": settings.steps}, model_sha256, "")
    chosen = method(cell.method)
    if chosen.tool == "dq-deploy":
        config = canonical(chosen.config(cell.preset, settings, seed=cell.seed), family)
        return Identity(config, model_sha256, quantization_sha256())
    config = {"tool": chosen.tool, "steps": settings.steps, "calibration_samples": settings.calibration_samples, "seed": cell.seed}
    return Identity(config, model_sha256, peers_sha256())


def differences(found: CellResult, now: Identity, same: SameCode) -> list[str]:
    """What a cell was measured with that differs from now. ``same`` knows which changes of the code changed no figure.

    A setting that did not exist yet had its default: what that does is the code's matter.
    """
    config = {**_defaults(), **found.config} if "tool" not in found.config and found.cell.method != FLOAT else found.config
    changed = sorted(k for k in {*config, *now.config} if config.get(k) != now.config.get(k))
    reasons = ["other weights"] if found.model_sha256 != now.model_sha256 else []
    reasons += [f"other settings ({', '.join(changed)})"] if changed else []
    return reasons + ([] if same(found.code_sha256, now.code_sha256) else [OTHER_CODE])


def _defaults() -> dict[str, Any]:
    return UNJUDGED.model_dump(mode="json", exclude=NAMES)


def state(
    found: CellResult | None, now: Identity, settings: Settings, tier: Tier, same: SameCode = _NOTHING_CONFIRMED
) -> tuple[State, str]:
    """Whether a cell's figures of a tier stand, and if not, why.

    A cell that other code made is stale in every tier, measured or not: its figures would be of two different checkpoints.
    """
    if found is None:
        return "missing", ""
    reasons = differences(found, now, same)
    figures = found.figures(tier)
    if figures is None and not reasons:
        return "missing", ""
    if figures is not None and figures.samples != settings.samples(tier):
        reasons.append(f"{figures.samples} samples")
    return ("stale", "; ".join(reasons)) if reasons else ("done", "")
