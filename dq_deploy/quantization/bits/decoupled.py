"""``--sensitivity decoupled``: groups of layers judged by what each answers for (ViDiT-Q, arXiv 2406.02540, §4.3).

The paper gives each group a budget by the error of the output, and within it raises the layers that matter most by a measure of the
group's own: the likeness to the text for cross-attention, the motion for temporal attention, the quality of the picture for the others,
as networks that were trained for that see them in whole samples. Here the measures are computed from the denoiser's own outputs, one step
at a time: what the condition changes, what changes between frames, and the prediction itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...sources.frames import frame_axis
from ..calibration.trajectories import Trajectories
from ..prepare import Prepared
from .aspects import PREDICTION, Aspect, condition_effect, conditions_differ, frame_changes, under_other_conditions
from .groups import Group, layers_by_group
from .sensitivity import some_inputs


@dataclass(frozen=True)
class Judging:
    """The group of each layer, and what the groups are judged by whose layers are not judged by the prediction.

    The prediction is judged on ``every`` n-th sample, under the conditions that it was drawn with. ``notes`` say what was not found.
    """

    groups: dict[str, Group]
    aspects: dict[Group, Aspect] = field(default_factory=dict)
    every: int = 1
    notes: tuple[str, ...] = ()

    def aspect(self, group: Group) -> Aspect:
        """What the layers of a group are judged by."""
        return self.aspects.get(group, PREDICTION)


BY_PREDICTION = Judging({})
"""Without groups."""


def judging_of(prepared: Prepared, data: Trajectories) -> tuple[Judging, Trajectories]:
    """How a network's layers are judged, and what on: ``data``, or, where that has no guidance, every sample under other conditions too."""
    axis = frame_axis(prepared.shape, prepared.details["model_config"])
    inputs = [value.to(prepared.device) for value in some_inputs(data, prepared.names).values()]
    found = layers_by_group(prepared.float_graph, prepared.plan.layers, inputs, axis)
    groups = {layer.name: found[layer.name] for layer in prepared.plan.quantized}
    aspects: dict[Group, Aspect] = {}
    notes: list[str] = []
    every = 1
    if Group.CROSS_ATTENTION in groups.values():
        if data.per_seed == 1:
            data, every = under_other_conditions(data), 2
        if conditions_differ(data):
            aspects[Group.CROSS_ATTENTION] = condition_effect(data.per_seed, data.samples.shape[2])
        else:
            notes.append("attention to a condition is judged by the prediction, since all samples have the same one")
    else:
        notes.append("no attention to a condition was found")
    if Group.TEMPORAL_ATTENTION in groups.values():
        assert axis is not None
        aspects[Group.TEMPORAL_ATTENTION] = frame_changes(axis)
    elif axis is not None:
        notes.append("no attention over frames alone was found")
    if not aspects:
        notes.append("every layer is judged by the prediction, as with --sensitivity snr")
    return Judging(groups, aspects, every, tuple(notes)), data
