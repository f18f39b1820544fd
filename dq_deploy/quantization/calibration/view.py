"""How networks of diffusers see the schedule where their pipelines stand between them and the scheduler.

A scheduler counts to ``num_train_timesteps`` and steps towards the sample. Some pipelines give their network a fraction of that, or count
it from the noise, and negate the answer. A network that is sampled without its pipeline has to be asked in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class View:
    """``fraction``: timesteps are 0 … 1; ``from_noise``: these are counted from the noise; ``negated``: the output points to the sample."""

    fraction: bool = False
    from_noise: bool = False
    negated: bool = False

    def times(self, moments: torch.Tensor, whole: float | None) -> torch.Tensor:
        """The scheduler's timesteps [T], which are up to ``whole``, as the network gets them: fp32 [T]."""
        times = moments.float()
        if self.fraction and whole is not None and float(times.max()) > 1:  # else the scheduler counts in fractions itself
            times = times / whole
        return 1 - times if self.from_noise else times

    def prediction(self, output: torch.Tensor) -> torch.Tensor:
        """The network's output [N, ...] as the scheduler takes it."""
        return -output if self.negated else output


AS_IT_IS = View()
_FRACTION = View(fraction=True)
_FROM_NOISE = View(fraction=True, from_noise=True, negated=True)

VIEWS = {
    "AuraFlowTransformer2DModel": _FRACTION,
    "ChromaTransformer2DModel": _FRACTION,
    "Flux2Transformer2DModel": _FRACTION,
    "FluxTransformer2DModel": _FRACTION,
    "HiDreamImageTransformer2DModel": View(negated=True),
    "Krea2Transformer2DModel": _FRACTION,
    "LongCatAudioDiTTransformer": _FRACTION,
    "LongCatImageTransformer2DModel": _FRACTION,
    "Lumina2Transformer2DModel": _FROM_NOISE,
    "LuminaNextDiT2DModel": _FROM_NOISE,
    "NucleusMoEImageTransformer2DModel": View(fraction=True, negated=True),
    "OvisImageTransformer2DModel": _FRACTION,
    "PRXTransformer2DModel": _FRACTION,
    "QwenImage21Transformer2DModel": _FRACTION,
    "QwenImageTransformer2DModel": _FRACTION,
    "ZImageTransformer2DModel": _FROM_NOISE,
}
"""By class of the network; tests compare them with the pipelines' source."""


def view_of(class_name: str | None) -> View:
    """The view of a network of that class, of diffusers or not."""
    return VIEWS.get(class_name or "", AS_IT_IS)
