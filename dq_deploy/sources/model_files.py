"""One model of diffusers from a folder of safetensors, in float32; nothing from disk runs as code."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..errors import ArtifactError, raise_if_out_of_memory, summarized
from .pickles import PICKLES, pickled_files, pickles_allowed
from .pipeline_index import WEIGHTS_SUFFIX, class_of_diffusers
from .recognize import other_weights
from .source import check_finite
from .weights import readable, weight_files

_LOG = logging.getLogger(__name__)


def load_model(folder: Path, class_name: str) -> Any:
    """The model of diffusers' class ``class_name`` in ``folder``.

    Raises ArtifactError for weights that are missing, pickled, damaged or do not fit its configuration.
    """
    _check_weights(folder)
    with readable(folder.parent, [folder.name]) as root:
        model, report = _load_safetensors(root, folder.name, class_name, shown=folder)
    _check_report(report, folder)
    return model


def load_part(root: Path, part: str, library: str, class_name: str, shown: Path) -> Any:
    """What stands beside the denoiser in the pipeline ``root``, if it is a model; None where it is none (a tokenizer, a scheduler).

    ``root`` may be a folder of links, and ``shown`` is the part's own. Raises ArtifactError for weights that are missing or not finite.
    Weights too many, as in a text encoder cut out of a larger model, harm nothing.
    """
    kind: Any = getattr(import_module(library), class_name, None)
    is_model = isinstance(kind, type) and issubclass(kind, torch.nn.Module)
    if not is_model:
        return None
    if library == "diffusers":
        model, report = _load_safetensors(root, part, class_name, shown)
    else:
        options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
        model, report = kind.from_pretrained(root, subfolder=part, **options)
    # A buffer that is not in the file is as the class makes it, a parameter is random.
    _check_report({"missing_keys": set(report["missing_keys"]) & dict(model.named_parameters()).keys()}, shown)
    check_finite(str(shown), model.state_dict())
    return model


def _load_safetensors(root: Path, part: str, class_name: str, shown: Path) -> tuple[Any, Mapping[str, Any]]:
    """The model, and what diffusers says of its weights."""
    from diffusers import ModelMixin

    kind = class_of_diffusers(class_name, ModelMixin, root)
    # Parts that stay in float32 whatever the type (Wan, Cosmos): all do here, and diffusers takes no low_cpu_mem_usage=False with them.
    plain: Any = type(kind.__name__, (kind,), {"_keep_in_fp32_modules": None}) if kind._keep_in_fp32_modules is not None else kind
    try:
        model, report = plain.from_pretrained(
            root,
            subfolder=part,
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises a dozen kinds for a damaged file or a configuration that does not fit
        raise_if_out_of_memory(error, f"loading the {class_name} in {shown}")
        _LOG.debug("loading %s failed", shown, exc_info=True)
        raise ArtifactError(f"cannot load the {class_name} in {shown}: {summarized(error)}") from error
    model.__class__ = kind
    return model, report


_MISFITS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def _check_report(report: Mapping[str, Any], shown: Path) -> None:
    """Diffusers and transformers only warn of these, and go on with random weights."""
    problems = [f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, report[kind]))[:5])}" for kind in _MISFITS if report.get(kind)]
    if problems:
        raise ArtifactError(f"the weights in {shown} do not fit its config.json: {'; '.join(problems)}")


def _check_weights(folder: Path) -> None:
    """Refuse a part without safetensors: what is pickled, what is another framework's, and what is not there."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder.parent} is not a complete diffusers pipeline: it has no folder '{folder.name}'")
    if weight_files(folder):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickled and not (pickles_allowed() and pickled_files(folder)):
        raise ArtifactError(
            f"{folder} has only pickled weights ({', '.join(pickled)}), which can run code when loaded: refused",
            "--allow-pickle (in Python: with dq_deploy.allow_pickles()) reads .bin files as plain tensors, and runs nothing in them; or "
            "write safetensors with diffusers: `pipeline.save_pretrained(DIR)`",
        )
    if pickled:
        return
    if others := other_weights(folder):
        raise ArtifactError(
            f"{folder} has no weights of PyTorch (*{WEIGHTS_SUFFIX}), only {others}", "give the pipeline that it was made from"
        )
    hint = None if pickles_allowed() else "an older pipeline may have pickled ones: --allow-pickle reads them as plain tensors"
    raise ArtifactError(f"{folder} has no weights (*{WEIGHTS_SUFFIX})", hint)
