"""How a build can fail, told apart: real child processes where one can be made to fail so, recorded log lines elsewhere."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dq_deploy.artifacts import sha256_file
from dq_deploy.engines.build import process as build_process
from dq_deploy.engines.build.process import BuilderCrash, Failure, diagnose, run_child
from dq_deploy.engines.build.request import BuildRequest
from dq_deploy.engines.devices.cuda_driver import gpu_compute_capability
from dq_deploy.errors import ArtifactError, EnvironmentProblem, ResourceError
from tests.engines import graphs

REPOSITORY = Path(__file__).parents[2]
PARSED = "[X] Parsing node: layer/Conv [Conv]\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX file of one INT8 conv."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT-RTX is not installed")
    return graphs.asymmetric_conv(tmp_path_factory.mktemp("bundle") / "bundle").path / "model.onnx"


def request(onnx: Path, folder: Path, *, plan: str = "") -> BuildRequest:
    return BuildRequest(
        backend="tensorrt-rtx",
        onnx=str(onnx),
        plan=plan or str(folder / "plan"),
        result=str(folder / "result.json"),
        compute_capability=(8, 9),
        profiles=[{"sample": ((1, 16, 8, 8), (1, 16, 8, 8), (8, 16, 8, 8)), "timestep": ((1,), (1,), (8,))}],
    )


def start_children_with(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``code`` at the start of every building child process, through Python's own ``sitecustomize``."""
    guarded = f"import sys\nif 'dq_deploy.engines.tensorrt.child' in sys.orig_argv:\n    {code}\n"
    (folder / "sitecustomize.py").write_text(guarded)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_success_is_judged_by_the_result_not_by_the_exit_code(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_children_with("import atexit, os; atexit.register(os.abort)", tmp_path, monkeypatch)
    build = run_child(request(small, tmp_path), tmp_path, timeout_s=None)
    assert build.result.sha256 == {str(tmp_path / "plan"): sha256_file(tmp_path / "plan")}
    assert build.result.compute_capability == (8, 9)


def test_time_limit(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="stopped at the time limit"):
        run_child(request(small, tmp_path), tmp_path, timeout_s=0.2)


def test_hang(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_process, "STALL_S", 0.5)
    start_children_with("import time; time.sleep(60)", tmp_path, monkeypatch)
    with pytest.raises(ResourceError, match="the builder hangs: no output and no CPU time"):
        run_child(request(small, tmp_path), tmp_path, timeout_s=None)


def test_killed(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_children_with("import os; os.kill(os.getpid(), 9)", tmp_path, monkeypatch)
    with pytest.raises(ResourceError, match=r"was killed \(SIGKILL\), as the system does when memory runs out") as caught:
        run_child(request(small, tmp_path), tmp_path, timeout_s=None)
    assert caught.value.exit_code == 5


def limit_memory(more_mb: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries are loaded and the graph is parsed; from then on the process may grow by ``more_mb`` only."""
    (folder / "limit.py").write_text(
        "import resource, sys\n"
        "def hook(event, args):\n"
        "    if event == 'import' and args[0] == 'polygraphy.backend.tensorrt_rtx':\n"
        "        size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"        resource.setrlimit(resource.RLIMIT_AS, (size + ({more_mb} << 20),) * 2)\n"
        "sys.addaudithook(hook)\n"
    )
    start_children_with("import limit", folder, monkeypatch)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_no_memory_for_threads(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(5, tmp_path, monkeypatch)  # less than one thread's stack
    with pytest.raises(ResourceError, match="could not start its threads"):
        run_child(request(small, tmp_path), tmp_path, timeout_s=20)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_no_memory_for_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights alone are larger than what is left. More cores start more threads, whose stacks may take it first."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT-RTX is not installed")
    limit_memory(200, tmp_path, monkeypatch)
    with pytest.raises(ResourceError, match="ran out of memory|could not start its threads|time limit"):
        run_child(request(graphs.many_weights(tmp_path / "model.onnx"), tmp_path), tmp_path, timeout_s=60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="could not be written: No space left on device"):
        run_child(request(small, tmp_path, plan="/dev/full"), tmp_path, timeout_s=None)


def test_truncated_graph(small: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(small.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="the builder refuses the graph"):
        run_child(request(broken, tmp_path), tmp_path, timeout_s=None)


def test_interrupt_ends_the_builder_too(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid_file = tmp_path / "pid"
    start_children_with(f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)", tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPOSITORY)]))
    script = (
        "from dq_deploy.engines.build.engine import build_engine\n"
        f"build_engine({str(small.parent)!r}, {str(tmp_path / 'engine')!r}, compute_capabilities=['8.9'])"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    while not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    _, stderr = parent.communicate(timeout=20)
    assert b"KeyboardInterrupt" in stderr
    assert not Path(f"/proc/{pid_file.read_text()}").exists()
    assert not list(tmp_path.glob("*engine*"))


@pytest.mark.parametrize(
    ("returncode", "line", "expected"),
    [
        # Recorded from TensorRT-RTX 1.7.1 under memory limits.
        (1, "[E] Unexpected exception std::bad_alloc\n[!] Invalid Engine.", "ran out of memory (std::bad_alloc)"),
        (
            1,
            "[E] IBuilder::buildSerializedNetwork: Error Code 1: Myelin (… exception Resource temporarily unavailable)",
            "start its threads",
        ),
        (-signal.SIGABRT, "terminate called after throwing an instance of 'std::bad_alloc'", "ran out of memory (std::bad_alloc)"),
        (1, "[E] Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)", "ran out of memory (OutOfMemory)"),
        (1, "MemoryError", "ran out of memory (MemoryError)"),
    ],
)
def test_memory_is_recognized(returncode: int, line: str, expected: str) -> None:
    error = diagnose(Failure(returncode, PARSED + line))
    assert isinstance(error, ResourceError)
    assert expected in str(error)


def test_crash_before_the_graph_is_a_broken_installation() -> None:
    error = diagnose(Failure(-signal.SIGSEGV, "[V] Loaded Module: tensorrt_rtx\n"))
    assert isinstance(error, EnvironmentProblem)
    assert "crashed (SIGSEGV) before it read the graph" in str(error)


def test_crash_on_a_graph_shows_the_last_lines() -> None:
    log = PARSED + "".join(f"[X] step {i}\n" for i in range(20))
    error = diagnose(Failure(-signal.SIGSEGV, log))
    assert isinstance(error, BuilderCrash)
    assert error.signal == "SIGSEGV"
    assert isinstance(error, ArtifactError)
    assert "crashed (SIGSEGV) on this graph" in str(error)
    assert "[X] step 12\n" in str(error)
    assert "[X] step 11\n" not in str(error)
    assert "the lint found nothing that is known to crash it" in str(error)
    assert "--float" in str(error)


def test_stopped_from_outside() -> None:
    error = diagnose(Failure(-signal.SIGTERM, PARSED))
    assert isinstance(error, EnvironmentProblem)
    assert "stopped from outside (SIGTERM)" in str(error)


def test_compiler_refusal_gives_its_words() -> None:
    line = "[E] IBuilder::buildSerializedNetwork: Error Code 1: Myelin (Cannot compile operation 'fc1/MatMul' for Turing (SM75))"
    error = diagnose(
        Failure(1, f"{PARSED}{line}\nTraceback (most recent call last):\npolygraphy.exception.exception.PolygraphyException: no")
    )
    assert isinstance(error, ArtifactError)
    assert "the builder refuses the graph: IBuilder::buildSerializedNetwork: Error Code 1: Myelin (Cannot compile operation" in str(error)


def test_libraries_that_do_not_load() -> None:
    error = diagnose(Failure(1, "Traceback (most recent call last):\nOSError: libcuda.so.1: cannot open shared object file\n"))
    assert isinstance(error, EnvironmentProblem)
    assert "libcuda.so.1" in str(error)


def test_our_own_bug_stays_a_bug() -> None:
    error = diagnose(Failure(1, "Traceback (most recent call last):\nTypeError: _build() takes 2 arguments\n"))
    assert isinstance(error, RuntimeError)
    assert "TypeError: _build() takes 2 arguments" in str(error)


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="a CUDA driver is installed")
def test_no_driver() -> None:
    with pytest.raises(OSError, match="libcuda") as caught:
        gpu_compute_capability()
    error = diagnose(Failure(1, f"Traceback (most recent call last):\nOSError: {caught.value}\n"))
    assert isinstance(error, EnvironmentProblem)
