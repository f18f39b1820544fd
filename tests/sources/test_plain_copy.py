"""What is wrapped, hooked, offloaded, cast or fused becomes the plain model again, and the caller's own stays as it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers import DDPMPipeline
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from diffusers.models.attention_processor import XFormersAttnProcessor, XFormersJointAttnProcessor
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from dq_deploy.errors import UsageError
from dq_deploy.sources import load_source, module_source
from dq_deploy.sources.plain_copy import plain_copy
from tests.tiny import PlainUNet, scheduler, tiny_unet
from tests.tiny_pipelines import tiny_conditioned_unet, tiny_flux, tiny_stable_diffusion_3

TEXT = {"encoder_hidden_states": torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(5))}
Change = Callable[[nn.Module], nn.Module | None]


def state(module: nn.Module) -> dict[str, Any]:
    """Everything of a module that a caller could find changed."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {
        "tensors": {n: (id(t), t.dtype, t.device, t.requires_grad, t.is_inference(), t.stride()) for n, t in tensors},
        "versions": {name: tensor._version for name, tensor in tensors if not tensor.is_inference()},
        "values": {name: tensor.detach().clone() for name, tensor in tensors if not tensor.is_meta},
        "modules": {name: (id(part), part.training, type(part)) for name, part in module.named_modules()},
        "hooks": {
            name: (list(part._forward_hooks), list(part._forward_pre_hooks), list(part._backward_hooks))
            for name, part in module.named_modules()
        },
        "attributes": {name: {k: id(v) for k, v in vars(part).items()} for name, part in module.named_modules()},
        "inside": {name: {k: repr(v) for k, v in vars(part).items()} for name, part in module.named_modules()},
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> None:
    values = before.pop("values"), after.pop("values")
    assert before == after
    assert all(torch.equal(value, values[1][name]) for name, value in values[0].items())


def compiled_inside(model: nn.Module) -> None:
    model.mid_block = torch.compile(model.mid_block)
    model.conv_out = nn.DataParallel(model.conv_out)


def group_offloaded(model: nn.Module, **options: Any) -> None:
    cpu = torch.device("cpu")
    apply_group_offloading(model, onload_device=cpu, offload_device=cpu, **options)


def sliced(model: Any) -> None:
    model.set_attention_slice(1)


def chunked(model: Any) -> None:
    for part in model.modules():
        if hasattr(part, "set_chunk_feed_forward"):
            part.set_chunk_feed_forward(4, 1)


def with_processor(model: Any, kind: type) -> None:
    for part in model.modules():
        if hasattr(part, "set_processor"):
            part.set_processor(kind())


def with_backend(model: Any) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    for part in model.modules():
        if hasattr(getattr(part, "processor", None), "_attention_backend"):
            part.processor._attention_backend = AttentionBackendName.SAGE


WRAPPED: dict[str, tuple[Change, Callable[[], Any]]] = {
    "compiled": (torch.compile, tiny_unet),
    "compiled in place": (lambda m: m.compile(), tiny_unet),
    "compiled and parallel": (lambda m: nn.DataParallel(torch.compile(m)), tiny_unet),
    "parts compiled": (compiled_inside, tiny_unet),
    "model offload": (lambda m: accelerate.cpu_offload_with_hook(m, "cpu")[0], tiny_unet),
    "sequential offload": (lambda m: accelerate.cpu_offload(m, "cpu"), tiny_unet),
    "sequential offload of buffers": (lambda m: accelerate.cpu_offload(m, "cpu", offload_buffers=True), PlainUNet),
    "dispatched": (lambda m: accelerate.dispatch_model(m, {"": "cpu"}, force_hooks=True), tiny_unet),
    "group offload by block": (lambda m: group_offloaded(m, offload_type="block_level", num_blocks_per_group=1), tiny_unet),
    "group offload by leaf": (lambda m: group_offloaded(m, offload_type="leaf_level"), tiny_unet),
    "slices": (sliced, tiny_conditioned_unet),
    "chunks": (chunked, tiny_conditioned_unet),
    "xformers": (lambda m: with_processor(m, XFormersAttnProcessor), tiny_conditioned_unet),
    "fused projections": (lambda m: m.fuse_qkv_projections(), tiny_conditioned_unet),
    "training": (lambda m: m.train(), lambda: tiny_unet(dropout=0.5)),
    "channels last": (lambda m: m.to(memory_format=torch.channels_last), tiny_unet),
    "frozen": (lambda m: m.requires_grad_(False), tiny_unet),
    "averaged": (torch.optim.swa_utils.AveragedModel, tiny_unet),
}


def outputs(model: Any, conditions: dict[str, torch.Tensor]) -> torch.Tensor:
    x = torch.randn(2, 4 if conditions else 1, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        result = model(x, torch.tensor([3.0, 500.0]), **conditions)
    return result if isinstance(result, torch.Tensor) else result[0]


def assert_plain(found: nn.Module, plain: nn.Module, conditions: dict[str, torch.Tensor]) -> None:
    """The same parts with the same values, and no other attributes than a model has that was never touched."""
    assert repr(found) == repr(plain)
    assert not found.training
    tensors = plain.state_dict()
    assert found.state_dict().keys() == tensors.keys()
    assert all(torch.equal(t, tensors[n]) and t.is_contiguous() for n, t in found.state_dict().items())
    for part, other in zip(found.modules(), plain.modules(), strict=True):
        assert vars(part).keys() == vars(other).keys()
        assert getattr(part, "_chunk_size", None) is None
        assert type(getattr(part, "processor", None)) is type(getattr(other, "processor", None))
    assert torch.equal(outputs(found, conditions), outputs(plain, conditions))


@pytest.mark.parametrize("name", WRAPPED)
def test_the_plain_model_comes_out(name: str) -> None:
    change, make = WRAPPED[name]
    model = make()
    wrapped = change(model)
    wrapped = model if wrapped is None else wrapped
    before, seed = state(wrapped), torch.get_rng_state()
    source = module_source(wrapped, scheduler(), (1, 8, 8))
    assert torch.equal(seed, torch.get_rng_state())
    same(before, state(wrapped))
    assert source.name == type(model).__name__
    assert_plain(source.model, make(), TEXT if make is tiny_conditioned_unet else {})


PRECISIONS: dict[str, Change] = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "cast by layer": lambda m: apply_layerwise_casting(m, storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_another_precision_is_read_and_left(name: str) -> None:
    model, plain = tiny_unet(), tiny_unet()
    PRECISIONS[name](model)
    plain.load_state_dict({n: tensor.float() for n, tensor in model.state_dict().items()})
    before = state(model)
    source = module_source(model, scheduler(), (1, 8, 8))
    same(before, state(model))
    assert_plain(source.model, plain, {})


def test_weights_of_the_right_kind_are_not_held_twice() -> None:
    model = tiny_unet()
    found = plain_copy(model)
    assert {p.data_ptr() for p in found.parameters()} == {p.data_ptr() for p in model.parameters()}
    found.double()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


class Noting(PlainUNet):
    """Notes its own type, as guided-diffusion's models do; counts its calls in a buffer; holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = torch.float16
        self.lock = threading.Lock()
        self.scale = torch.tensor(2.0, dtype=torch.float16)
        self.layers = [self.first]
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        with self.lock:
            return super().forward(x.to(self.kind) * self.scale, t)


def test_a_module_with_more_than_weights() -> None:
    model = Noting().half()
    before = state(model)
    found = plain_copy(model)
    assert found.layers[0] is found.first
    assert torch.isfinite(outputs(found, {})).all()
    assert outputs(found, {}).dtype == torch.float32
    same(before, state(model))
    assert model.calls == 0


def test_weights_made_under_inference_mode() -> None:
    with torch.inference_mode():
        model = tiny_unet()
        before = state(model)
        found = module_source(model, scheduler(), (1, 8, 8)).model
    same(before, state(model))
    assert not any(tensor.is_inference() for tensor in found.state_dict().values())
    assert_plain(found, tiny_unet(), {})


BAKED: dict[str, Callable[[nn.Module], Any]] = {
    "parametrized weight norm": parametrizations.weight_norm,
    "parametrized spectral norm": parametrizations.spectral_norm,
    "own parametrization": lambda m: parametrize.register_parametrization(m, "weight", nn.Tanh()),
    "weight norm": torch.nn.utils.weight_norm,
    "spectral norm": torch.nn.utils.spectral_norm,
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", BAKED)
def test_computed_weights_become_weights(name: str) -> None:
    model = PlainUNet()
    BAKED[name](model.first)
    BAKED[name](model.qkv)
    outputs(model.eval(), {})
    expected, before = outputs(model, {}), state(model)
    found = plain_copy(model)
    same(before, state(model))
    assert torch.equal(outputs(model, {}), expected)  # the caller's computes on
    assert found.state_dict().keys() == PlainUNet().state_dict().keys()
    assert type(found.first) is nn.Conv2d
    assert torch.allclose(outputs(found, {}), expected, atol=1e-6)
    assert not torch.equal(found.first.weight, PlainUNet().first.weight)


def test_other_kernels_of_attention() -> None:
    for make, kind, conditions in (
        (tiny_conditioned_unet, XFormersAttnProcessor, TEXT),
        (lambda: tiny_stable_diffusion_3().transformer, XFormersJointAttnProcessor, None),
    ):
        model, plain = make(), make()
        with_processor(model, kind)
        found = plain_copy(model)
        assert [type(p.processor) for p in found.modules() if hasattr(p, "processor")] == [
            type(p.processor) for p in plain.modules() if hasattr(p, "processor")
        ]
        if conditions is not None:
            assert torch.equal(outputs(found, conditions), outputs(plain, conditions))
    flux = tiny_flux().transformer
    with_backend(flux)
    before = state(flux)
    backends = {part.processor._attention_backend.value for part in plain_copy(flux).modules() if hasattr(part, "processor")}
    assert backends == {"native"}
    same(before, state(flux))


def test_an_adapter_is_added_into_a_copy() -> None:
    model = PlainUNet()
    wrapped = get_peft_model(model, LoraConfig(target_modules=["qkv", "out"], init_lora_weights=False))
    expected, before = outputs(wrapped, {}), state(wrapped)
    source = module_source(wrapped, scheduler(), (1, 8, 8))
    same(before, state(wrapped))
    assert source.name == "PlainUNet"
    assert torch.allclose(outputs(source.model, {}), expected, atol=1e-5)


def test_offloaded_to_a_disk(tmp_path: Path) -> None:
    model = tiny_unet()
    group_offloaded(model, offload_type="leaf_level", offload_to_disk_path=str(tmp_path / "groups"))
    found = plain_copy(model)
    assert_plain(found, tiny_unet(), {})
    model = tiny_unet()
    accelerate.disk_offload(model, str(tmp_path / "weights"), "cpu")
    assert_plain(plain_copy(model), tiny_unet(), {})


def quantized_already() -> nn.Module:
    model = PlainUNet()
    model.first.weight = nn.Parameter((model.first.weight * 100).to(torch.int8), requires_grad=False)
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return PlainUNet()


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "meta": (
        on_meta,
        r"weights of this PlainUNet are on the meta device, which holds no values: first.weight, first.bias, .* and \d+ more\nload",
    ),
    "quantized": (quantized_already, "the weights of this PlainUNet are quantized already: first.weight\nload the model in its original"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(1, 1)), "weights of this Sequential have no shape yet: 0.weight, 0.bias\ncall"),
    "script": (lambda: torch.jit.script(nn.Linear(1, 1)), "a TorchScript module has no Python forward.*\ngive the module"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_weights_to_copy(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        plain_copy(make())


def test_a_pipeline_folder_that_was_wrapped_is_the_folder(tmp_path: Path) -> None:
    pipeline = DDPMPipeline(tiny_unet().half(), scheduler())
    pipeline.unet = torch.compile(pipeline.unet)
    source = load_source(pipeline)
    assert source.config["_class_name"] == "UNet2DModel"
    assert isinstance(pipeline.unet, torch._dynamo.OptimizedModule)
    assert source.sample_shape == (1, 8, 8)
