"""The drop-in model: a bundle in the place of a pipeline's ``unet`` or ``transformer``.

``pipe.unet = dq_deploy.load(bundle)`` leaves the pipeline, its scheduler and its loop as they are; only the network's forward pass is
answered by an inference engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.utils.outputs import BaseOutput

from ..artifacts import Artifact
from ..errors import UsageError
from .choice import Runtime, make_runner
from .engine_files import open_runnable
from .runner import TIMESTEP, Runner
from .watch import WatchedRunner, WatchRow

Forward = Callable[[dict[str, torch.Tensor]], torch.Tensor]


class DropInModel(torch.nn.Module):
    """Answers as the diffusers model of ``model_config`` does, without parameters.

    ``forward_inputs`` computes the output from the inputs by name; ``input_names`` are those it takes, in the order of the model's forward.
    ``.to(device, dtype)`` decides what the pipeline makes its tensors of; the engine computes where it was loaded.
    """

    def __init__(
        self,
        forward_inputs: Forward,
        input_names: Sequence[str],
        model_config: Mapping[str, Any],
        report: Callable[[], list[WatchRow]] | None = None,
    ) -> None:
        super().__init__()
        self._report = report
        self._forward_inputs = forward_inputs
        self._input_names = tuple(input_names)
        self.config = FrozenDict(model_config)
        # Moves with `.to()`, so that device and dtype are what the caller last asked for; holds no numbers and is not saved.
        self.register_buffer("placement", torch.empty(0), persistent=False)

    def watched(self) -> list[WatchRow]:
        """What was seen so far, by timestep. Raises UsageError for a model that was not loaded with ``watch=True``."""
        if self._report is None:
            raise UsageError("this model is not watched", "load it with watch=True")
        return self._report()

    @property
    def device(self) -> torch.device:
        """Where the pipeline should make its tensors."""
        return self._buffer.device

    @property
    def dtype(self) -> torch.dtype:
        """What the pipeline should make its tensors of."""
        return self._buffer.dtype

    @property
    def _buffer(self) -> torch.Tensor:
        return self._buffers["placement"]  # type: ignore[return-value]

    @property
    def add_embedding(self) -> SimpleNamespace:
        """Stable Diffusion XL's pipelines ask this layer how many inputs it has. Raises AttributeError for a model without it."""
        width = self.config.get("projection_class_embeddings_input_dim")
        if width is None:
            raise AttributeError("this model has no add_embedding")
        return SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

    def cache_context(self, name: str) -> AbstractContextManager[None]:  # noqa: ARG002  the signature of diffusers' models
        """Pipelines name the half of the guidance that they are at, for caches between steps; there are none here."""
        return nullcontext()

    def __getattr__(self, name: str) -> Any:
        """Questions such as ``unet.in_channels`` are answered from the configuration, as diffusers' own models do."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            config = self.__dict__.get("config", {})
            if name.startswith("_") or name not in config:
                raise
            return config[name]

    @torch.no_grad()
    def forward(self, *inputs: Any, return_dict: bool = True, **conditions: Any) -> Any:
        """The model's output for ``sample`` [N, C, H, W] and ``timestep`` (a scalar, [1] or [N]), in ``sample``'s dtype and on its device.

        Raises UsageError for a condition that the exported graph has no input for.
        """
        named = self._named(inputs, conditions)
        first = named.get(self._input_names[0])
        if first is None:
            raise UsageError(f"input '{self._input_names[0]}' is missing")
        sample = torch.as_tensor(first)
        output = self._forward_inputs({name: torch.as_tensor(value) for name, value in named.items()}).to(sample.device, sample.dtype)
        return _output_class(self.config.get("_class_name"))(sample=output) if return_dict else (output,)

    def _named(self, inputs: Sequence[Any], conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Positional and keyword inputs by name; an optional condition left at None does not count."""
        if len(inputs) > len(self._input_names):
            raise UsageError(f"{len(inputs)} inputs were given, and this model takes {', '.join(self._input_names)}")
        named = dict(zip(self._input_names, inputs, strict=False))
        for name, value in conditions.items():
            # Pipelines hand some conditions over in a dict (`added_cond_kwargs`).
            named |= value if isinstance(value, Mapping) else {name: value}
        named = {name: value for name, value in named.items() if value is not None}
        unknown = sorted(set(named) - set(self._input_names))
        if unknown:
            raise UsageError(f"this model was exported without {', '.join(unknown)}; it takes {', '.join(self._input_names)}")
        return named


def load(path: str | Path | Artifact, *, runtime: Runtime = "auto", watch: bool = False, **options: Any) -> DropInModel:
    """A bundle or an engine as the drop-in for a pipeline's ``unet`` or ``transformer``.

    ``runtime`` "auto" is what an engine was built for, and for a bundle the faster of those that are installed and exact here
    (``choice.best_runtime``). ``options`` go to its runner
    (``providers``, ``optimized``, ``threads``; for OpenVINO ``precision``, ``threads``, ``integer``).
    With ``watch`` a quantized bundle runs in onnxruntime unfused, and ``model.watched()`` has a row for every timestep: the share of NaN in
    the output and of codes at an end of their range (watch.py).

    Raises UsageError (no such path, unknown runtime), ArtifactError (neither of the two, a changed file, another runtime than the engine's)
    and EnvironmentProblem (the runtime is not installed, or is no match for the engine).
    """
    artifact = open_runnable(path)
    runner = _watched(artifact, runtime, options) if watch else make_runner(artifact, runtime=runtime, **options)
    ranks = {entry["name"]: len(entry["shape"]) for entry in artifact.manifest.details["inputs"]}
    report = runner.report if isinstance(runner, WatchedRunner) else None
    return DropInModel(_through(runner, ranks), list(ranks), artifact.manifest.details.get("model_config") or {}, report)


def _watched(artifact: Artifact, runtime: Runtime, options: Mapping[str, Any]) -> WatchedRunner:
    if artifact.manifest.kind != "bundle" or runtime not in ("auto", "onnxruntime"):
        raise UsageError("only a bundle in onnxruntime can be watched", "give the bundle, and leave the runtime at auto")
    return WatchedRunner(artifact, **options)


def _through(runner: Runner, ranks: Mapping[str, int]) -> Forward:
    first = next(iter(ranks))

    def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        arrays = {name: _array(value) for name, value in inputs.items()}
        for name, array in arrays.items():
            # One for the whole batch, as FLUX's pipelines have the positions of its tokens.
            if name != TIMESTEP and array.ndim == ranks[name] - 1:
                arrays[name] = np.broadcast_to(array, (len(arrays[first]), *array.shape))
        return torch.from_numpy(np.ascontiguousarray(runner.run(arrays)))

    return forward


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu()
    array: np.ndarray[Any, Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy has no bfloat16
    return array


def _output_class(class_name: str | None) -> type[BaseOutput]:
    """What the model of that class returns; each has one field, ``sample``."""
    from diffusers.models.modeling_outputs import Transformer2DModelOutput
    from diffusers.models.unets.unet_2d import UNet2DOutput
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    if class_name == "UNet2DConditionModel":
        return UNet2DConditionOutput
    return Transformer2DModelOutput if class_name and "Transformer" in class_name else UNet2DOutput
