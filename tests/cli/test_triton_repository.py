"""``dq-deploy triton-repository`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dq_deploy.cli import run
from tests.engines import graphs
from tests.engines.triton_like import parse


def test_repository(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = graphs.network(tmp_path / "unet").path
    arguments = ["triton-repository", str(bundle), "-o", str(tmp_path / "models")]
    assert run([*arguments, "--max-batch-size", "4", "--queue-delay-us", "0", "--device", "cpu", "--format", "json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["manifest"]["details"]["dynamic_batching"] is True
    config = parse(tmp_path / "models" / "unet" / "config.pbtxt")
    assert (config.max_batch_size, config.dynamic_batching.max_queue_delay_microseconds) == (4, 0)
    assert run(arguments) == 2
    assert "already exists" in capfd.readouterr().err
    assert run([*arguments, "--force"]) == 0
    captured = capfd.readouterr()
    assert "yes, at any timesteps" in captured.out
    assert "without VNNI" in captured.err
    assert run(["triton-repository", str(tmp_path / "none"), "-o", str(tmp_path / "other")]) == 2
