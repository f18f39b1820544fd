"""What decides a cell's figures: its configuration, the model's weights, the code. Anything else may change and the figures stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dq_deploy.artifacts import sha256_json

from .code_hash import peers_sha256, quantization_sha256
from .methods import Family, canonical, method
from .results import CellResult
from .settings import FLOAT, Cell, Settings, Tier

State = Literal["missing", "done", "stale"]


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
        config = canonical(chosen.config(cell.preset, settings, seed=cell.seed, family=family), family)
        return Identity(config, model_sha256, quantization_sha256())
    config = {"tool": chosen.tool, "steps": settings.steps, "calibration_samples": settings.calibration_samples, "seed": cell.seed}
    return Identity(config, model_sha256, peers_sha256())


def state(found: CellResult | None, wanted: Identity, settings: Settings, tier: Tier) -> tuple[State, str]:
    """Whether a cell's figures of a tier stand, and if not, why.

    A cell that other code made is stale in every tier, measured or not: its figures would be of two different checkpoints.
    """
    if found is None:
        return "missing", ""
    reasons = []
    if found.model_sha256 != wanted.model_sha256:
        reasons.append("other weights")
    if found.config != wanted.config:
        changed = sorted(k for k in {*found.config, *wanted.config} if found.config.get(k) != wanted.config.get(k))
        reasons.append(f"other settings ({', '.join(changed)})")
    if found.code_sha256 != wanted.code_sha256:
        reasons.append("other code")
    figures = found.figures(tier)
    if figures is None and not reasons:
        return "missing", ""
    if figures is not None and figures.samples != settings.samples(tier):
        reasons.append(f"{figures.samples} samples")
    return ("stale", "; ".join(reasons)) if reasons else ("done", "")
