"""IP-Adapters: layers in a UNet's attention that read a picture's embedding, and the encoder that makes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..artifacts.reading import check_safetensors, tensor_shapes
from ..errors import ArtifactError, UsageError, beside, raise_if_out_of_memory, summarized
from .model_files import load_part
from .picture_pipeline import MODULE_ROUTE
from .pictures import Pictures
from .pipeline_index import WEIGHTS_SUFFIX
from .quiet import no_progress_bars, no_warnings, without_torchvision
from .weights import readable

ENCODER = "image_encoder"
"""The folder beside an adapter's file, and the part of a pipeline, that reads the picture."""
CONFIG_KEY = "ip_adapter"
"""In a network's configuration, of what diffusers keeps beside it."""
_PREFIXES = ("image_proj.", "ip_adapter.")
_ONLY_SAFETENSORS = "a pickle can run code when loaded, so only safetensors are read"


@dataclass(frozen=True)
class IpAdapter:
    """An adapter's file, or the folder that has it, and how much its picture counts."""

    path: Path
    scale: float = 1.0

    @property
    def file(self) -> Path:
        """The file of weights.

        Raises UsageError: nothing there, no safetensors, several files; a scale that is not above 0.
        """
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise UsageError(
                f"the scale of the IP-Adapter is {self.scale}, and must be above 0", "--ip-adapter-scale 0.6 is half of the way to 1"
            )
        path = self.path.expanduser()
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix == WEIGHTS_SUFFIX)
            if len(found) > 1:
                shown = ", ".join(file.name for file in found)
                raise UsageError(f"{self.path} has {len(found)} files: {shown}", "give one of them: --ip-adapter DIR/FILE")
            if not found:
                raise UsageError(f"{self.path} has no IP-Adapter (*{WEIGHTS_SUFFIX})", _ONLY_SAFETENSORS)
            return found[0]
        if not path.is_file():
            raise UsageError(f"no such IP-Adapter: {self.path}", beside(path))
        if path.suffix != WEIGHTS_SUFFIX:
            raise UsageError(f"{self.path} is not a {WEIGHTS_SUFFIX} file", _ONLY_SAFETENSORS)
        return path


def check_ip_adapter(adapter: IpAdapter) -> None:
    """Before the pipeline is loaded. Raises UsageError as ``IpAdapter.file`` does, and ArtifactError for a file without such an adapter."""
    file = adapter.file
    check_safetensors(file)
    names = list(tensor_shapes(file))
    if not all(any(name.startswith(prefix) for name in names) for prefix in _PREFIXES):
        shown = ", ".join(names[:3]) or "none"
        raise ArtifactError(
            f"{file} holds no IP-Adapter, whose tensors begin with {' and '.join(_PREFIXES)}; its first are {shown}",
            "those for Stable Diffusion and SDXL have the form that pipeline.load_ip_adapter reads",
        )
    if any("_lora." in name for name in names):
        raise UsageError(f"{file} reads the embeddings of a face recognition, not a picture", MODULE_ROUTE.format(component="unet"))


def load_ip_adapter(pipeline: Any, adapter: IpAdapter) -> None:
    """Load an adapter into a pipeline of diffusers, and the encoder in the folder beside it where the pipeline has none.

    Raises UsageError for a pipeline that takes none or has one already, and without an encoder; ArtifactError for weights that do not fit.
    """
    file, kind = adapter.file, type(pipeline).__name__
    if not hasattr(pipeline, "load_ip_adapter") or getattr(pipeline, "unet", None) is None:
        raise UsageError(
            f"a {kind} takes no IP-Adapter here: only pipelines with a UNet do, such as Stable Diffusion and SDXL",
            MODULE_ROUTE.format(component="transformer"),
        )
    if projections(pipeline.unet):
        raise UsageError(f"the {kind} has an IP-Adapter already", "leave --ip-adapter out")
    if pipeline.image_encoder is None:
        pipeline.register_modules(image_encoder=_encoder(file))
    try:
        with without_torchvision(), no_warnings():
            pipeline.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None,
                                     local_files_only=True, low_cpu_mem_usage=False)  # fmt: skip
            pipeline.set_ip_adapter_scale(adapter.scale)
    except Exception as error:  # diffusers and torch raise several kinds for a file that does not fit
        raise_if_out_of_memory(error, f"loading the IP-Adapter {file}")
        raise ArtifactError(f"cannot load the IP-Adapter {file} into a {kind}: {summarized(error)}") from error
    _check_fit(file, pipeline)


def _encoder(file: Path) -> torch.nn.Module:
    folder = file.parent / ENCODER
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"there is no encoder of pictures for {file}: neither the pipeline has one, nor is there a folder {folder}",
            f"put the one that it was trained with there, named {ENCODER}",
        )
    try:
        with readable(file.parent, [ENCODER]) as root, no_progress_bars():
            found: torch.nn.Module = load_part(root, ENCODER, "transformers", "CLIPVisionModelWithProjection", folder)
    except ArtifactError:
        raise
    except Exception as error:  # transformers raises a dozen kinds for a damaged folder
        raise_if_out_of_memory(error, f"loading {folder}")
        raise ArtifactError(f"cannot load the encoder of pictures in {folder}: {summarized(error)}") from error
    return torch.nn.Module.to(found, torch.float32).eval()


def _check_fit(file: Path, pipeline: Any) -> None:
    """Raise UsageError where the adapter was trained with an encoder of another width."""
    from diffusers.models.embeddings import ImageProjection

    layer, config = projections(pipeline.unet)[0], pipeline.image_encoder.config
    takes = next(part.in_features for part in layer.modules() if isinstance(part, torch.nn.Linear))
    gives = config.projection_dim if isinstance(layer, ImageProjection) else config.hidden_size
    if takes != gives:
        raise UsageError(
            f"{file} takes embeddings of width {takes}, and the encoder of pictures gives {gives}",
            f"put the encoder that it was trained with beside it, named {ENCODER}; one in the pipeline's own folder is taken first",
        )


def projections(model: Any) -> list[torch.nn.Module]:
    """What projects the picture's embedding in a network, one for each IP-Adapter that it has."""
    found = getattr(getattr(model, "encoder_hid_proj", None), "image_projection_layers", None)
    return list(found) if found is not None else []


def adapter_config(model: Any) -> dict[str, Any]:
    """What a network's configuration says of its IP-Adapters, which diffusers keeps beside it: their projections, and scales by layer."""
    found = projections(model)
    if not found:
        return {}
    scales = {name: list(processor.scale) for name, processor in model.attn_processors.items() if hasattr(processor, "to_k_ip")}
    return {CONFIG_KEY: {"projections": [type(layer).__name__ for layer in found], "scales": scales}}


def check_adapter_pictures(pipeline: Any, component: str, pictures: Pictures) -> None:
    """Raise UsageError where an IP-Adapter has no picture, or a picture no IP-Adapter, and where there are several."""
    kind, found = type(pipeline).__name__, projections(getattr(pipeline, component))
    if len(found) > 1:
        raise UsageError(
            f"the {component} of a {kind} has {len(found)} IP-Adapters, and pictures are given to one",
            f"load one; or {MODULE_ROUTE.format(component=component)}",
        )
    if found and not pictures.ip_adapter_image:
        raise UsageError(
            f"the {component} of a {kind} has an IP-Adapter, and no picture for it is given",
            "give --ip-adapter-image FILE; pipeline.unload_ip_adapter() takes the adapter off",
        )
    if pictures.ip_adapter_image and not found:
        raise UsageError(
            f"a picture for an IP-Adapter is given, and the {component} of a {kind} has none",
            "give --ip-adapter FILE; of a pipeline object: pipeline.load_ip_adapter(...)",
        )
