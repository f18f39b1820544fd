"""One model of diffusers from a folder of safetensors, in float32; nothing from disk runs as code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ..errors import ArtifactError, raise_if_out_of_memory, summarized
from .pickles import PICKLES, pickled_files, pickles_allowed
from .pipeline_index import WEIGHTS_SUFFIX, class_of_diffusers
from .recognize import other_weights
from .weights import readable, weight_files

_LOG = logging.getLogger(__name__)


def load_model(folder: Path, class_name: str) -> Any:
    """The model of diffusers' class ``class_name`` in ``folder``.

    Raises ArtifactError for weights that are missing, pickled, damaged or do not fit its configuration.
    """
    _check_weights(folder)
    with readable(folder.parent, [folder.name]) as root:
        return _load_safetensors(root, folder.name, class_name, shown=folder)


def _load_safetensors(root: Path, part: str, class_name: str, shown: Path) -> Any:
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
    # diffusers only warns of these, and goes on with random weights.
    problems = [f"{kind.replace('_', ' ')}: {', '.join(map(str, report[kind][:5]))}" for kind in _MISFITS if report.get(kind)]
    if problems:
        raise ArtifactError(f"the weights in {shown} do not fit its config.json: {'; '.join(problems)}")
    model.__class__ = kind
    return model


_MISFITS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


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
