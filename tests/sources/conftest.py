from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from diffusers import DDPMPipeline

from tests.flow import small_unet
from tests.tiny import scheduler


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pipeline as diffusers writes it; not to be changed."""
    path = tmp_path_factory.mktemp("saved") / "pipeline"
    DDPMPipeline(small_unet(), scheduler()).save_pretrained(path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "pipeline"))
