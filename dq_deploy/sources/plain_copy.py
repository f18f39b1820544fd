"""A copy of a module as its class wrote it: nothing wrapped, hooked, offloaded, cast or fused, and none of the caller's objects changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import UsageError
from .offloaded import offloaded_values
from .plain_attention import set_plain_attention

_HALVES = (torch.float16, torch.bfloat16)
_QUANTIZERS = ("bitsandbytes", "torchao", "gguf", "optimum.quanto", "diffusers.quantizers", "transformers.quantizers", "torch.ao.nn")
# What frameworks put over a module's own methods and beside its attributes.
_HOOKED = ("_hf_hook", "_diffusers_hook", "_old_forward")
_PUT_OVER = (*_HOOKED, "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa", "hf_device_map")
_MOST_LISTED = 3


def plain_copy(module: nn.Module, dtype: torch.dtype | None = torch.float32) -> nn.Module:
    """A copy of ``module`` in evaluation mode without gradients: in ``dtype`` on the CPU, or with None as it is and where it is.

    What is wrapped around it (``torch.compile``, ``DataParallel``, peft) and hooked into it (offloading, casting) is left out, weights that
    are computed at each call (parametrizations, weight norm) are computed once, and diffusers' attention is the plain one. A weight that is
    in ``dtype`` already shares its memory with the caller's, and must not be written to; buffers are copied.

    Raises UsageError for weights that another tool has quantized, that are on the meta device, or that have no shape yet.
    """
    module = _unwrapped(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("a TorchScript module has no Python forward that could be captured", "give the module that it was made from")
    values = offloaded_values(module)
    _check(module, values)
    with torch.inference_mode(mode=False), torch.no_grad():
        copied = _copied(module, _memo(module, values, dtype))
        for part in copied.modules():
            _unhook(part)
            if dtype is not None:
                _in_one_type(part, dtype)
        copied.eval()
        for part in list(copied.modules()):
            _bake(part)
        set_plain_attention(copied)
        return copied.requires_grad_(requires_grad=False)


def copied(thing: Any) -> Any:
    """A copy of a scheduler or the like; the thing itself where it cannot be copied."""
    try:
        return copy.deepcopy(thing)
    except Exception:  # noqa: BLE001  whatever an attribute's own copying raises
        return thing


def is_quantized(module: nn.Module) -> bool:
    """Whether another tool has quantized weights of the module."""
    return bool(_quantized(module)[0])


def _unwrapped(module: nn.Module) -> nn.Module:
    while (inner := _inner(module)) is not None:
        module = inner
    return module


def _inner(module: nn.Module) -> nn.Module | None:
    """What a wrapper is around; None for a module that is not a wrapper."""
    from torch._dynamo import OptimizedModule
    from torch.optim.swa_utils import AveragedModel

    found: Any = None
    if isinstance(module, OptimizedModule):
        found = module._orig_mod
    elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
        found = module.module
    elif type(module).__module__.startswith("peft.") and hasattr(module, "get_base_model"):
        wrapper: Any = module
        found = wrapper.get_base_model()
    return found if isinstance(found, nn.Module) else None


def _check(module: nn.Module, values: Mapping[int, torch.Tensor]) -> None:
    name = type(module).__name__
    tensors: dict[str, torch.Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    quantized, packages = _quantized(module)
    if quantized:
        by = f" by {', '.join(packages)}" if packages else ""
        raise UsageError(
            f"the weights of this {name} are quantized already{by}: {_listed(quantized)}",
            "load the model in its original precision, without a quantization_config; quantizing it is what this is for",
        )
    if unmade := [p for p, tensor in tensors.items() if torch.nn.parameter.is_lazy(tensor)]:
        raise UsageError(f"weights of this {name} have no shape yet: {_listed(unmade)}", "call the module once before quantizing it")
    if empty := [p for p, tensor in tensors.items() if tensor.is_meta and id(tensor) not in values]:
        raise UsageError(
            f"weights of this {name} are on the meta device, which holds no values: {_listed(empty)}",
            "load the weights before quantizing: what makes a model on meta only makes its shapes",
        )
    if split := [p for p, tensor in tensors.items() if type(tensor).__name__ == "DTensor" or p.endswith("_flat_param")]:
        raise UsageError(f"weights of this {name} are split over processes: {_listed(split)}", "gather them into a plain module first")


def _quantized(module: nn.Module) -> tuple[list[str], list[str]]:
    """Names of what is quantized, and the packages that did it as far as its classes say."""
    things = [*module.named_modules(), *module.named_parameters(), *module.named_buffers()]
    kinds = {path: kind for path, thing in things if (kind := _quantizer(thing))}
    stored = [path for path, tensor in module.named_parameters() if not (tensor.is_floating_point() or tensor.is_complex())]
    return list(dict.fromkeys([*kinds, *stored])), sorted(set(kinds.values()))


def _quantizer(thing: object) -> str | None:
    """The package that stores weights in codes of its own and made this module or tensor."""
    # The classes of tensors that a quantizer derives may say nothing themselves; their bases do.
    homes = [kind.__module__ for kind in type(thing).__mro__]
    return next((package for package in _QUANTIZERS for home in homes if f"{home}.".startswith(f"{package}.")), None)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MOST_LISTED]) + (f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else "")


def _memo(module: nn.Module, values: Mapping[int, torch.Tensor], dtype: torch.dtype | None) -> dict[int, Any]:
    """For ``deepcopy``: what happens to every tensor, by the tensor's id; and the hooks, which are shared and then dropped."""
    memo: dict[int, Any] = {}
    tensor: torch.Tensor
    for tensor in module.parameters():
        value = _converted(values.get(id(tensor), tensor), dtype)
        memo[id(tensor)] = nn.Parameter(value, requires_grad=False)
    for tensor in module.buffers():
        value = values.get(id(tensor), tensor)
        memo[id(tensor)] = _converted(value, dtype, own=True)
    for part in module.modules():
        for name, value in vars(part).items():
            if name in ("_hf_hook", "_diffusers_hook"):
                memo[id(value)] = value
            elif isinstance(value, torch.Tensor) and id(value) not in memo:
                memo[id(value)] = _converted(value, dtype if value.dtype in _HALVES else None, own=True)
                memo[id(value)] = memo[id(value)].cpu() if dtype is not None else memo[id(value)]
    return memo


def _converted(tensor: torch.Tensor, dtype: torch.dtype | None, *, own: bool = False) -> torch.Tensor:
    """The values in ``dtype`` on the CPU (None: as they are), in the memory of ``tensor`` where that serves and is not to be ``own``."""
    plain = tensor.detach().as_subclass(torch.Tensor)
    if dtype is not None:
        plain = plain.to("cpu", dtype if plain.is_floating_point() else plain.dtype)
        if plain.stride() != torch.empty(plain.shape, device="meta").stride():  # channels last, which is not a property of the model
            plain = plain.clone(memory_format=torch.contiguous_format)
    same = plain.data_ptr() == tensor.data_ptr()
    # A tensor from inference mode can never be part of anything that records gradients.
    return plain.clone() if same and (own or tensor.is_inference()) else plain


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """``module`` copied; of parts that are wrapped what they wrap, and what cannot be copied (a lock, an open file) shared."""
    parts = list(module.modules())
    try:
        return _deep_copied(parts, dict(memo))
    except Exception:  # noqa: BLE001  whatever an attribute's own copying raises
        for value in _attributes(parts):
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:  # noqa: BLE001  as above
                memo[id(value)] = value
    return _deep_copied(parts, memo)


def _deep_copied(parts: list[nn.Module], memo: dict[int, Any]) -> nn.Module:
    for part in reversed(parts):  # from the inside out
        if (inner := _inner(part)) is not None:
            memo[id(part)] = copy.deepcopy(inner, memo)
    return copy.deepcopy(parts[0], memo)


def _attributes(parts: list[nn.Module]) -> Iterator[Any]:
    """What the modules hold beside tensors and modules."""
    for part in parts:
        if _inner(part) is None:
            yield from (value for name, value in vars(part).items() if name not in ("_parameters", "_buffers", "_modules"))


def _unhook(part: nn.Module) -> None:
    """Take off what accelerate and diffusers put over a module's methods: both note what was there before in ``__wrapped__``."""
    own = vars(part)
    own.pop("_is_torch_compile", None)  # torch.compile's mark
    if any(name in own for name in _HOOKED):
        forward: Any = own.get("forward")
        while hasattr(forward, "__wrapped__") and "__self__" not in dir(forward):
            forward = forward.__wrapped__
        if forward is None or getattr(forward, "__func__", None) is type(part).forward:
            own.pop("forward", None)
        else:
            own["forward"] = forward
        for name in _PUT_OVER:
            own.pop(name, None)


def _in_one_type(part: nn.Module, dtype: torch.dtype) -> None:
    """Let a module that notes its own type (``self.dtype = torch.float16``) compute in the one that its weights have now."""
    for name, value in vars(part).items():
        if isinstance(value, torch.dtype) and value in _HALVES:
            setattr(part, name, dtype)


def _in_a_class_of_its_own(part: nn.Module) -> None:
    """Part a parametrized module's class from that of the caller's, which it shares: removing takes properties from it."""
    shared = type(part)
    own = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    part.__class__ = type(shared.__name__, shared.__bases__, own)


def _bake(part: nn.Module) -> None:
    """Compute once the weights that a module computes at each call."""
    if parametrize.is_parametrized(part):
        assert isinstance(part.parametrizations, nn.ModuleDict)
        _in_a_class_of_its_own(part)
        for name in list(part.parametrizations):
            value = getattr(part, name).detach().clone()
            originals = part.parametrizations[name]
            for key, tensor in list(originals.named_parameters(recurse=False)):
                setattr(originals, key, nn.Parameter(tensor.clone(), requires_grad=False))  # removing writes to them
            parametrize.remove_parametrizations(part, name, leave_parametrized=True)
            setattr(part, name, nn.Parameter(value, requires_grad=False))
    for number, hook in list(part._forward_pre_hooks.items()):
        if isinstance(hook, WeightNorm | SpectralNorm | prune.BasePruningMethod):
            hook.remove(part)
            del part._forward_pre_hooks[number]
