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

from ...artifacts import Artifact, is_kind
from ...artifacts.details import BundleDetails
from ...errors import ArtifactError, UsageError
from ...quantization.calibration.recording import UNBATCHED
from ...quantization.calling import call_of_record
from ..loading.choice import Runtime, make_cached_runner, make_runner
from ..loading.engine_files import open_runnable
from ..loading.size_range import SizeRange
from ..running.runner import TIMESTEP, GraphRunner, Runner
from ..step_cache.runner import CachedRunner
from ..step_cache.steps import CacheReport
from .answers import controlnet_class
from .ip_adapter import AdapterInGraph, blocks_with_attention
from .module import EngineModule, Origin, as_one_of, check_no_gradients
from .saving import guard_saving
from .watch import WatchedRunner, WatchRow

Forward = Callable[[dict[str, torch.Tensor]], torch.Tensor]


class DropInModel(EngineModule):
    """Answers as the diffusers model of ``model_config`` does, without weights.

    ``forward_inputs`` computes the output from the inputs by name; ``input_names`` are those it takes, in the order of the model's forward.
    ``.to(device, dtype)`` decides what the pipeline makes its tensors of; the engine computes where it was loaded. ``origin`` is what a
    pickle keeps of it. ``report`` and ``cached`` say what was seen and saved.
    """

    def __init__(
        self,
        forward_inputs: Forward,
        input_names: Sequence[str],
        model_config: Mapping[str, Any],
        report: Callable[[], list[WatchRow]] | None = None,
        origin: Origin | None = None,
        call: Mapping[str, Any] | None = None,
        cached: Callable[[], CacheReport] | None = None,
    ) -> None:
        super().__init__(model_config, origin)
        self._form, self._output = call_of_record(call, input_names, model_config.get("_class_name"))
        self._report, self._cached = report, cached
        self._forward_inputs = forward_inputs
        self._input_names = tuple(input_names)

    def watched(self) -> list[WatchRow]:
        """What was seen so far, by timestep. Raises UsageError for a model that was not loaded with ``watch=True``."""
        if self._report is None:
            raise UsageError("this model is not watched", "load it with watch=True")
        return self._report()

    def cached(self) -> CacheReport:
        """What caching across steps saved so far. Raises UsageError for a model that was not loaded with ``cache``."""
        if self._cached is None:
            raise UsageError("this model keeps nothing from step to step", "load it with cache=0.1, or another threshold")
        return self._cached()

    @property
    def encoder_hid_proj(self) -> torch.nn.Module:
        """Of an IP-Adapter's graph what a pipeline asks before it encodes a picture. Raises AttributeError for one without an adapter."""
        return self._adapter().projection()

    @property
    def attn_processors(self) -> dict[str, Any]:
        """Of an IP-Adapter's graph its layers' scales, which are fixed. Raises AttributeError as above."""
        return self._adapter().processors()

    @property
    def down_blocks(self) -> list[SimpleNamespace]:
        """Which of these blocks have attention. Raises AttributeError as above."""
        self._adapter()
        return blocks_with_attention(self.config, "down")

    @property
    def up_blocks(self) -> list[SimpleNamespace]:
        """Which of these blocks have attention. Raises AttributeError as above."""
        self._adapter()
        return blocks_with_attention(self.config, "up")

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As a module's; of an IP-Adapter's graph with its layers by name, empty: scales by block are set where diffusers finds them."""
        found = super().state_dict(*args, **kwargs)
        adapter = AdapterInGraph.of(self.config)
        return found if adapter is None else {**found, **{name: torch.empty(0) for name in adapter.scales}}

    def _adapter(self) -> AdapterInGraph:
        found = AdapterInGraph.of(self.config)
        if found is None:
            raise AttributeError("this model has no IP-Adapter")
        return found

    @property
    def add_embedding(self) -> SimpleNamespace:
        """Stable Diffusion XL's pipelines ask this layer how many inputs it has. Raises AttributeError for a model without it."""
        width = self.config.get("projection_class_embeddings_input_dim")
        if width is None:
            raise AttributeError("this model has no add_embedding")
        return SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

    def cache_context(self, *_: Any, **__: Any) -> AbstractContextManager[None]:
        """Pipelines say where in the loop they are, for caches between steps. It is not asked for: ``cache`` tells it by the conditions."""
        return nullcontext()

    @torch.compiler.disable(reason="an engine computes this, and there is nothing to compile")  # type: ignore[untyped-decorator]
    def forward(self, *inputs: Any, return_dict: bool = True, **conditions: Any) -> Any:
        """The model's output for ``sample`` [N, C, H, W] and ``timestep`` (a scalar, [1] or [N]), in ``sample``'s dtype and on its device.

        Conditions are what the network itself takes, in its structure, and what comes back is what it gives.

        Raises UsageError for a condition that the exported graph has no input for, for constants and structures other than those that the
        graph was made with, and for what the float model would not take either.
        """
        named = {name: torch.as_tensor(value) for name, value in self._form.bind(inputs, conditions, self._input_names).items()}
        first = self._input_names[0]
        sample = named[first]
        if not sample.is_floating_point():
            raise UsageError(f"input '{first}' is {sample.dtype}, and the output would be cut to that type", "give floats")
        check_no_gradients(named)
        with torch.no_grad():
            output = self._forward_inputs(named).to(sample.device, sample.dtype)
        return self._output.restore(output, return_dict=return_dict)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the path and the options that it was loaded with. Raises UsageError where it was not loaded from a path."""
        if self.origin is None:
            raise UsageError("this drop-in was not loaded from a path, and cannot be pickled", "load it with dq_deploy.load(PATH)")
        return load_again, (self.origin, self.dtype, "cpu" if self.device.type == "meta" else str(self.device))


def load(
    path: str | Path | Artifact, *, runtime: Runtime = "auto", watch: bool = False, cache: float | None = None, **options: Any
) -> DropInModel:
    """A bundle, an engine or a schedule as the drop-in for a pipeline's ``unet`` or ``transformer``.

    A schedule has all its members loaded, and each timestep goes to the one that it belongs to.

    ``runtime`` "auto" is what an engine was built for, and for a bundle the faster of those that are installed and exact here
    (``choice.best_runtime``). ``options`` go to its runner: ``providers``, ``optimized``, ``threads``; for OpenVINO ``precision``,
    ``threads``, ``integer``; for all ``nonfinite``: "refuse" samples with NaN or infinity (the default, unless ``watch``), or "propagate"
    them, which gives NaN. With ``watch`` a quantized bundle runs in onnxruntime unfused, and ``model.watched()`` has a row for every
    timestep: NaN in the output and before the quantizers, and the share of codes at an end of their range (watch.py).
    With ``cache``, a threshold, a bundle skips all but its first block where what that adds has changed less since the last call in full
    (docs/caching.md), and ``model.cached()`` says how often.

    Raises UsageError (no such path, unknown runtime, a network that cannot be cut for ``cache``), ArtifactError (none of the three, a
    changed file, another runtime than the engine's) and EnvironmentProblem (the runtime is not installed, or does not match the engine).
    """
    artifact = open_runnable(path)
    runner = _runner(artifact, runtime, options, watch=watch, cache=cache)
    ranks = {entry.name: len(entry.shape) for entry in artifact.details.inputs}
    report = runner.report if isinstance(runner, WatchedRunner) else None
    cached = runner.report if isinstance(runner, CachedRunner) else None
    details, origin = artifact.details, Origin.of(artifact, {"runtime": runtime, "watch": watch, "cache": cache, **options})
    config = details.network_config or {}
    controlnet = controlnet_class(config)
    kind: type[DropInModel] = DropInModel if controlnet is None else as_one_of(DropInModel, controlnet)
    return kind(_through(runner, ranks, SizeRange.of(artifact)), list(ranks), config, report, origin, details.call_record, cached)


def _runner(artifact: Artifact[Any], runtime: Runtime, options: Mapping[str, Any], *, watch: bool, cache: float | None) -> GraphRunner:
    if watch and cache is not None:
        raise UsageError("a model is either watched, node by node, or skips nodes by a cache across steps", "leave one of them out")
    if watch:
        return WatchedRunner(watchable(artifact, runtime), **options)
    if cache is not None:
        return make_cached_runner(artifact, cache, runtime=runtime, **options)
    return make_runner(artifact, runtime=runtime, **options)


def load_again(origin: Origin, dtype: torch.dtype, device: str) -> DropInModel:
    """The drop-in that was pickled, in this process.

    Raises ArtifactError when another artefact lies there now, and what loading raises.
    """
    artifact = open_runnable(origin.path)
    if artifact.as_parent.manifest_sha256 != origin.manifest_sha256:
        raise ArtifactError(f"{origin.path} is another artefact than the one that was pickled", "load it with dq_deploy.load(PATH)")
    return load(artifact, **origin.options).to(device, dtype)


def watchable(artifact: Artifact[Any], runtime: Runtime) -> Artifact[BundleDetails]:
    """The artefact, which is a bundle. Raises UsageError for what cannot be watched."""
    if not is_kind(artifact, BundleDetails) or runtime not in ("auto", WatchedRunner.name):
        which = f"one of its members, such as {artifact.path}/1" if artifact.members else "the bundle"
        raise UsageError(f"only a bundle in {WatchedRunner.name} can be watched", f"give {which}, and leave the runtime at auto")
    return artifact


def _through(runner: Runner, ranks: Mapping[str, int], sizes: SizeRange | None = None) -> Forward:
    first = next(iter(ranks))

    def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        arrays = {name: _array(value) for name, value in inputs.items()}
        batch = arrays[first].shape[:1]
        for name in arrays.keys() - {first, TIMESTEP}:
            arrays[name] = _for_each_sample(name, arrays[name], ranks[name], batch)
        if sizes is not None:
            sizes.check(arrays)
        return torch.from_numpy(np.ascontiguousarray(runner.run(arrays)))

    return forward


def _for_each_sample(name: str, array: np.ndarray[Any, Any], rank: int, batch: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """What diffusers' models take once for the whole batch: a number, as () or [1], and the positions of FLUX's tokens."""
    if rank == 1 and array.size == 1 and array.ndim <= 1:
        return np.broadcast_to(array.reshape(1), batch)
    return np.broadcast_to(array, (*batch, *array.shape)) if name in UNBATCHED and array.ndim == rank - 1 else array


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu().resolve_neg()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()  # numpy has no bfloat16 and no float8
    array: np.ndarray[Any, Any] = tensor.numpy()
    return array


guard_saving()
