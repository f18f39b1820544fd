"""QuEST (arXiv 2402.03666): a scale for each timestep, and only some layers are trained.

The paper (§4.2) trains the layers that carry the timestep and attention. Its released code trains the timestep's projections, and then
the feed-forward layers. Both are here.
"""

from __future__ import annotations

from .method import ATTENTION, FEED_FORWARD, TIME, Method

_OPTIONS = {"dilation": "none", "rounding": "nearest", "activations": "per-timestep", "judged_samples": 0}
_LIMITS = (
    "Layers are trained in their blocks, by the block's error; the paper adds the error of the network's output.",
    "The released code trains the timestep's projections before the others; here they are trained together, each in its block.",
)

QUEST = Method(
    name="quest",
    title="QuEST, as released",
    paper="arXiv 2402.03666",
    summary="a scale for each timestep; the timestep's projections and feed-forward layers are trained, as in the released code",
    options={**_OPTIONS, "train": (TIME, FEED_FORWARD)},
    limits=_LIMITS,
)
QUEST_PAPER = Method(
    name="quest-paper",
    title="QuEST, as in the paper",
    paper="arXiv 2402.03666",
    summary="a scale for each timestep; the timestep's projections and attention layers are trained, as in the paper",
    options={**_OPTIONS, "train": (TIME, ATTENTION)},
    limits=_LIMITS,
)
