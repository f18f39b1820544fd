"""Everything a run needs to go on, in one safetensors file that is replaced atomically."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dq_deploy.errors import ArtifactError

STATE_NAME = "state.safetensors"


@dataclass
class TrainingState:
    """What changes while a network is trained. ``step`` is the number of steps done; batches and dropout follow from it and the seed."""

    model: torch.nn.Module
    ema: EMAModel
    optimizer: Optimizer
    schedule: LRScheduler
    step: int = 0

    def descend(self, loss: torch.Tensor) -> float:
        """Take a step down the gradient of ``loss``, and the weights' moving average with it; the loss as a number."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.ema.step(self.model.parameters())
        self.step += 1
        value: float = loss.item()
        return value

    def save(self, folder: Path, settings: dict[str, Any]) -> None:
        """Write the state and the run's ``settings``; a kill at any moment leaves the former file or the new one."""
        ema = self.ema.state_dict()
        optimizer = self.optimizer.state_dict()
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema.{index}": tensor for index, tensor in enumerate(ema.pop("shadow_params"))}
        tensors |= {f"optimizer.{index}.{key}": tensor for index, entry in optimizer["state"].items() for key, tensor in entry.items()}
        record = {
            "settings": settings,
            "step": self.step,
            "ema": ema,
            "groups": optimizer["param_groups"],
            "schedule": {key: value for key, value in self.schedule.state_dict().items() if key != "lr_lambdas"},
        }
        path = folder / STATE_NAME
        partial = path.with_suffix(".partial")
        # Copies: safetensors refuses tensors that share memory, as tied embeddings do.
        own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        save_file(own, partial, {"record": json.dumps(record)})
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)

    def restore(self, folder: Path) -> None:
        """Set everything to what the file holds. Raises ArtifactError when it cannot be read or belongs to another network."""
        record, tensors = _read(folder / STATE_NAME)
        try:
            self.model.load_state_dict(_under(tensors, "model."))
            shadow = _under(tensors, "ema.")
            device = next(self.model.parameters()).device
            self.ema.load_state_dict(record["ema"] | {"shadow_params": [shadow[str(index)].to(device) for index in range(len(shadow))]})
            entries: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in _under(tensors, "optimizer.").items():
                index, key = name.split(".", 1)
                entries.setdefault(int(index), {})[key] = tensor
            self.optimizer.load_state_dict({"state": entries, "param_groups": record["groups"]})
            self.schedule.load_state_dict({**record["schedule"], "lr_lambdas": [None]})
            self.step = record["step"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{folder / STATE_NAME} does not fit this network: {error}") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that the run in ``folder`` was started with."""
    settings: dict[str, Any] = _read(folder / STATE_NAME, tensors=False)[0]["settings"]
    return settings


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})["record"])
            return record, {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118  no mapping
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ArtifactError(f"{path} is not a training state: {error}") from None


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
