"""LoRA and other adapters of peft: added into the weights of a copy, since an integer engine has one weight for each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..artifacts.reading import check_safetensors, read_tensors
from ..errors import ArtifactError, EnvironmentProblem, UsageError, beside, raise_if_out_of_memory, summarized
from .lora_fit import check_fit, check_layers
from .peft_lora import CONFIG_NAME, load_peft, saved_by_peft
from .plain_copy import plain_copy
from .quiet import without_advice
from .source import check_finite

_TOLERANCE = 1e-4  # of the layer's largest output: float32 adds up in another order


@dataclass(frozen=True)
class Lora:
    """An adapter file (safetensors) and the weight that it is added with."""

    path: Path
    scale: float = 1.0


def fused_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A plain float32 copy of ``model`` on the CPU (``plain_copy``) without adapters, the active ones added into its weights.

    Every layer is compared with what it was. Raises UsageError for an adapter that is not a plain change of a weight.
    """
    copied = plain_copy(model)
    layers = _adapted(copied)
    for name, layer in layers:
        for tensor in layer.parameters():
            tensor.data = tensor.data.clone()  # merging writes to them, and the copy shares the caller's
        parent, _, leaf = name.rpartition(".")
        setattr(copied.get_submodule(parent), leaf, _fused(name, layer))
    if layers:
        copied.__dict__.pop("peft_config", None)
        copied.__dict__.pop("_hf_peft_config_loaded", None)
    return copied


def check_lora(lora: Lora) -> None:
    """Before the pipeline is loaded.

    Raises UsageError (no such file, another suffix), ArtifactError (no safetensors) and EnvironmentProblem (no peft).
    """
    if not math.isfinite(lora.scale):
        raise UsageError(
            f"the weight of the LoRA is {lora.scale}, and must be a finite number", "--lora-scale 1 takes it as it was trained"
        )
    if not lora.path.is_file():
        raise UsageError(f"no such LoRA file: {lora.path}", beside(lora.path))
    if lora.path.suffix != ".safetensors":
        raise UsageError(f"{lora.path} is not a .safetensors file", "a pickle can run code when loaded, so only safetensors are read")
    check_safetensors(lora.path)
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(f"a LoRA needs peft: {error}", "pip install peft") from None


def load_lora(pipeline: Any, component: str, lora: Lora) -> None:
    """Load an adapter file into a diffusers pipeline, its text encoders included; one that peft saved is for its ``component`` alone.

    Raises UsageError for a pipeline that takes no LoRA, and ArtifactError when the file does not fit, in whole or in part, or has values
    that are not finite.
    """
    check_finite(str(lora.path), read_tensors(lora.path))
    if saved_by_peft(lora.path):
        load_peft(getattr(pipeline, component), lora.path, lora.scale)
        return
    if not hasattr(pipeline, "load_lora_weights"):
        raise UsageError(
            f"a {type(pipeline).__name__} takes no LoRA of diffusers' form",
            f"one that peft saved goes into any network: adapter_model.safetensors, with {CONFIG_NAME} beside it",
        )
    try:
        with without_advice():
            pipeline.load_lora_weights(str(lora.path.parent), weight_name=lora.path.name, adapter_name="lora", local_files_only=True)
        check_fit(pipeline, lora.path)
        pipeline.set_adapters(["lora"], [lora.scale])
    except ArtifactError:
        raise
    except Exception as error:  # diffusers, peft and safetensors raise a dozen kinds for a file that does not fit
        raise_if_out_of_memory(error, f"loading the LoRA {lora.path}")
        raise _misfit(pipeline, lora.path, error) from error


def _misfit(pipeline: Any, path: Path, error: Exception) -> ArtifactError:
    """The error for a file that diffusers did not load: the layers that are not there, else what the library says."""
    try:
        check_layers(pipeline, path)
    except ArtifactError as named:
        return named
    except Exception:  # noqa: BLE001, S110  what kept it from being loaded keeps it from being read by name, too
        pass
    return ArtifactError(f"cannot load the LoRA {path} into a {type(pipeline).__name__}: {summarized(error)}")


def has_adapters(model: torch.nn.Module) -> bool:
    """Whether peft wraps a layer of the model."""
    return any(type(module).__module__.startswith("peft.") for module in model.modules())


def _adapted(model: torch.nn.Module) -> list[tuple[str, Any]]:
    """Layers that peft wraps, by name; none without peft."""
    if not has_adapters(model):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


@torch.no_grad()
def _fused(name: str, layer: Any) -> torch.nn.Module:
    base = layer.get_base_layer()
    x = _example(base)
    active = [] if layer.disable_adapters else list(layer.active_adapters)
    kind = f"the adapter {', '.join(active)} ({type(layer).__module__.split('.')[2]}) on {name}"
    hint = "fuse it yourself (pipeline.fuse_lora(); pipeline.unload_lora_weights()), or save the merged model"
    if x is None:
        raise UsageError(f"{kind} changes a {type(base).__name__}, and only linear and convolution layers can be fused", hint)
    expected = layer(x)
    try:
        if active:
            layer.merge(safe_merge=False)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise_if_out_of_memory(error)
        raise UsageError(f"{kind} cannot be fused: {' '.join(str(error).split())}", hint) from error
    fused: torch.nn.Module = layer.get_base_layer()
    got = fused(x)
    if not torch.isfinite(expected).all():
        return fused  # whoever reads the weights next names those that are not finite
    if not torch.allclose(got, expected, rtol=0, atol=_TOLERANCE * float(expected.abs().max())):
        difference = float((got - expected).abs().max() / expected.abs().max())
        raise UsageError(f"{kind} is not a change of its weight alone: fused, the output differs by {difference:.1e}", hint)
    return fused


def _example(layer: torch.nn.Module) -> torch.Tensor | None:
    """Random input of a layer, None for one that is neither linear nor a convolution."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(layer, torch.nn.Linear):
        return torch.randn(4, layer.in_features, generator=generator)
    if isinstance(layer, torch.nn.Conv2d):
        height, width = (3 * k for k in layer.kernel_size)
        return torch.randn(2, layer.in_channels, height, width, generator=generator)
    return None
