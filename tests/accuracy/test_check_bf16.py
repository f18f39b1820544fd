"""A bf16 bundle: ``check`` says why it cannot be run here."""

from __future__ import annotations

import pytest

from dq_deploy.accuracy import check
from dq_deploy.artifacts import Artifact
from dq_deploy.errors import EnvironmentProblem
from dq_deploy.exporters import export
from dq_deploy.quantization.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def bundle(unet_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(unet_checkpoint.artifact, tmp_path_factory.mktemp("bf16") / "bundle", target="qdq", dtype="bf16")


def test_check_says_why_it_cannot(bundle: Artifact, unet_checkpoint: Checkpoint) -> None:
    with pytest.raises(EnvironmentProblem, match="bf16 bundle, and ONNX Runtime has no bfloat16 kernels") as caught:
        check(bundle, unet_checkpoint.artifact)
    assert "check --lint" in str(caught.value.hint)
