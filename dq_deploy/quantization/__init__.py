"""The PyTorch stage: a float model → a checkpoint of integers and scale tables (DilateQuant, arXiv 2409.14307)."""

from .checkpoint import Checkpoint, load_checkpoint
from .config import QuantizeConfig
from .estimate.budget import Budget, estimate
from .pipeline import quantize
from .running.work_folder import work_path

__all__ = ["Budget", "Checkpoint", "QuantizeConfig", "estimate", "load_checkpoint", "quantize", "work_path"]
