"""What a drop-in answers of the IP-Adapter that is in its graph: pipelines look at its projection, and set its scale layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from pydantic import Field

from ...artifacts.records import Open
from ...errors import UsageError
from ...sources.ip_adapter import CONFIG_KEY


class AdapterInGraph(Open):
    """An IP-Adapter's kind of projection, and the scale of each layer that reads its picture."""

    projections: list[str] = Field(min_length=1)
    scales: dict[str, list[float]]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> AdapterInGraph | None:
        """Of the network with this configuration; None where it has none."""
        return cls.model_validate(config[CONFIG_KEY]) if CONFIG_KEY in config else None

    def projection(self) -> torch.nn.Module:
        """As diffusers' ``encoder_hid_proj``, without weights: by its class pipelines know which of the encoder's outputs it takes."""
        from diffusers.models import embeddings

        with torch.device("meta"):
            return embeddings.MultiIPAdapterImageProjection([getattr(embeddings, name)() for name in self.projections])

    def processors(self) -> dict[str, Any]:
        """The layers' attention processors, whose scale is fixed in the graph."""
        return {layer: _processor(scales) for layer, scales in self.scales.items()}


def blocks_with_attention(config: Mapping[str, Any], kind: str) -> list[SimpleNamespace]:
    """Which of a UNet's blocks, ``down`` or ``up``, have attention: what diffusers asks before it sets a scale."""
    names = config.get(f"{kind}_block_types") or ()
    return [SimpleNamespace(attentions=()) if "Attn" in name else SimpleNamespace() for name in names]


class _FixedScale(list[float]):
    """A scale that is in the graph: it can be set to what it is."""

    def __setitem__(self, index: Any, value: Any) -> None:
        if value != self[index]:
            raise UsageError(
                f"the IP-Adapter's scale is {self[index]:g} in this graph, and {value} is asked for",
                f"make one with that: dq-deploy refit BUNDLE --checkpoint CHECKPOINT --ip-adapter-scale {value} -o OUT; of a pipeline "
                f"object pipeline.set_ip_adapter_scale({value}), and quantize",
            )


def _processor(scales: list[float]) -> Any:
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    made = IPAdapterAttnProcessor2_0(1, 1, num_tokens=(1,) * len(scales), scale=list(scales))
    made.scale = _FixedScale(scales)
    return made
