"""Runs the building child process and tells the ways apart in which it can fail: refusal, crash, out of memory, hang, time limit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

import dq_deploy

from ...artifacts import sha256_file
from ...artifacts.writing import write_text
from ...errors import ArtifactError, DqDeployError, EnvironmentProblem, ResourceError, UsageError
from ..descriptors.registry import builder_named
from .request import BuildRequest, BuildResult

# A builder that fails to start a thread (seen under a memory limit) waits for it for ever. No output and no CPU time for so long is a hang.
STALL_S = 120.0
_POLL_S = 0.1
_LAST_LINES = 8

_MEMORY = re.compile(r"std::bad_alloc|out ?of ?memory|MemoryError|cannot allocate memory|failed to map segment|cudaErrorMemory\w+", re.I)
_THREADS = re.compile(r"Resource temporarily unavailable")
_DISK = re.compile(r"No space left on device|Disk quota exceeded|File too large")
_WORKSPACE = re.compile(r"within workspace limit")
_IMPORT = re.compile(r"^(?:ImportError|ModuleNotFoundError): .*|^OSError: .*\.so.*|^RuntimeError: CUDA driver: .*", re.MULTILINE)
_UNPARSED = re.compile(r"In node (?P<index>-?\d+) with name: (?P<name>.*?) and operator: (?P<op>\S+) \(.*?\): \w+: (?P<message>.*)")
_ERROR_LINE = re.compile(r"^\[(?:E|!)\] (.*)$", re.MULTILINE)
_EXCEPTION = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception)): (.*)$", re.MULTILINE)

# What a child raises of ours arrives as the last lines of a traceback.
_OUR_ERRORS: dict[str, type[DqDeployError]] = {kind.__name__: kind for kind in (ArtifactError, EnvironmentProblem, ResourceError)}

Stopped = Literal["", "timeout", "stall"]


@dataclass(frozen=True)
class Build:
    """A finished build: what the child reported, and the builder's verbose log."""

    result: BuildResult
    log: str


class BuilderCrash(ArtifactError):
    """The builder died of a signal while it had the graph. ``signal`` is its name, such as "SIGSEGV"."""

    def __init__(self, message: str, hint: str, *, signal: str) -> None:
        super().__init__(message, hint)
        self.signal = signal


@dataclass(frozen=True)
class Failure:
    """How a child ended without a result: ``returncode`` as subprocess has it, ``stopped`` when it was this process that ended it."""

    returncode: int
    log: str
    stopped: Stopped = ""


def run_child(request: BuildRequest, folder: Path, *, timeout_s: float | None, alive: Callable[[], None] = lambda: None) -> Build:
    """Build in a child process. ``folder`` takes the request, the result and the log; ``alive`` is called often while it runs.

    Success is judged by the result file and the engine's hashes alone: a builder may crash after its work is done.
    Raises ArtifactError, EnvironmentProblem or ResourceError, see ``diagnose``.
    """
    request_file, log_file = folder / "request.json", folder / "log.txt"
    write_text(request_file, request.model_dump_json())
    with log_file.open("wb") as log:
        returncode, stopped = _run(builder_named(request.backend).building.child, request_file, log.fileno(), timeout_s, alive)
    text = log_file.read_text(errors="replace")
    try:
        result = BuildResult.model_validate_json(Path(request.result).read_bytes())
    except (FileNotFoundError, ValidationError):
        raise diagnose(Failure(returncode, text, stopped)) from None
    if any(sha256_file(Path(file)) != sha256 for file, sha256 in result.sha256.items()):
        raise ResourceError("the engine on disk is not what the builder made: it has another sha256", "check the disk")
    return Build(result, text)


def _run(module: str, request_file: Path, log: int, timeout_s: float | None, alive: Callable[[], None]) -> tuple[int, Stopped]:
    command = [sys.executable, "-P", "-u", "-m", module, str(request_file)]
    package_root = str(Path(dq_deploy.__file__).parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")])),
        "POLYGRAPHY_AUTOINSTALL_DEPS": "0",  # nothing is installed at run time
    }
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)  # noqa: S603 - a builder's own module
    try:
        stopped = _wait(process, log, timeout_s, alive)
    finally:  # Ctrl-C as well: a builder must not outlive the command
        process.kill()
        process.wait()
    return process.returncode, stopped


def _wait(process: subprocess.Popen[bytes], log: int, timeout_s: float | None, alive: Callable[[], None]) -> Stopped:
    started = moved = time.monotonic()
    last: tuple[int, int] = (0, 0)
    while True:
        try:
            process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
        else:
            return ""
        alive()
        signs = (os.fstat(log).st_size, _cpu_ticks(process.pid))
        if signs != last:
            last, moved = signs, now
        if timeout_s is not None and now - started > timeout_s:
            return "timeout"
        if now - moved > STALL_S:
            return "stall"


def _cpu_ticks(pid: int) -> int:
    """CPU time that a process has used, in clock ticks; the clock itself where /proc does not tell, so that nothing looks like a stall."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic_ns()
    return int(fields[11]) + int(fields[12])  # utime and stime are fields 14 and 15; two are cut off, and indices start at 0


def diagnose(failure: Failure) -> DqDeployError | RuntimeError:
    """The error that a failed build ends with.

    ResourceError: out of memory, disk full, killed, hanging, time limit. ArtifactError: the builder refused the graph (with the node) or
    crashed on it. UsageError: an option leaves it no choice. EnvironmentProblem: the libraries do not load, or crash before they see the
    graph. RuntimeError: a bug of ours.
    """
    return _resource(failure) or _crash(failure) or _refusal(failure)


def _resource(failure: Failure) -> ResourceError | None:
    more = "the build needs more memory: close other programs, or build on a larger machine"
    if failure.stopped == "timeout":
        return ResourceError("the builder was stopped at the time limit", "allow more time")
    if failure.stopped == "stall":
        return ResourceError(f"the builder hangs: no output and no CPU time for {STALL_S:.0f} s\n{_tail(failure.log)}", more)
    if match := _DISK.search(failure.log):
        return ResourceError(f"the engine could not be written: {match[0]}", "free some space, or choose another output")
    if match := _MEMORY.search(failure.log):
        return ResourceError(f"the builder ran out of memory ({match[0]})", more)
    if _THREADS.search(failure.log):
        return ResourceError("the builder could not start its threads: a memory or process limit is too low", more)
    if failure.returncode == -signal.SIGKILL:
        return ResourceError("the builder was killed (SIGKILL), as the system does when memory runs out", more)
    return None


def _crash(failure: Failure) -> DqDeployError | None:
    if failure.returncode >= 0:
        return None
    name = signal.Signals(-failure.returncode).name
    if failure.returncode in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
        return EnvironmentProblem(f"the builder was stopped from outside ({name})", "run the command again")
    last = f"the last lines of its log:\n{_tail(failure.log)}"
    if "Parsing node:" not in failure.log:
        return EnvironmentProblem(f"the builder crashed ({name}) before it read the graph; {last}", "reinstall its Python packages")
    hint = (
        "the lint found nothing that is known to crash it: build the bundle of an unmodified export, or with --float, to narrow it down, "
        "and report the graph"
    )
    return BuilderCrash(f"the builder crashed ({name}) on this graph; {last}", hint, signal=name)


def _refusal(failure: Failure) -> DqDeployError | RuntimeError:
    if match := _IMPORT.search(failure.log):
        return EnvironmentProblem(
            f"the builder's libraries do not load: {match[0]}", "check the driver and memory limits, and reinstall its packages"
        )
    if _WORKSPACE.search(failure.log):
        return UsageError("no kernel can work in so little workspace", "give a larger --workspace-mb, or leave it out")
    if unparsed := list(dict.fromkeys(_UNPARSED.findall(failure.log))):
        nodes = [f"node '{name}' ({op}): {message.strip()}" for _, name, op, message in unparsed]
        return ArtifactError(f"the builder refuses the graph: {'; '.join(nodes)}", "export the bundle again with this dq-deploy")
    exceptions = _EXCEPTION.findall(failure.log)
    if exceptions and exceptions[-1][0] in _OUR_ERRORS:
        return _OUR_ERRORS[exceptions[-1][0]](exceptions[-1][1])
    if exceptions and exceptions[-1][0] != "PolygraphyException":
        return RuntimeError(f"the building process failed: {exceptions[-1][0]}: {exceptions[-1][1]}\n{_tail(failure.log)}")
    errors = "; ".join(_ERROR_LINE.findall(failure.log)) or f"it ended with code {failure.returncode}\n{_tail(failure.log)}"
    return ArtifactError(f"the builder refuses the graph: {errors}")


def _tail(log: str) -> str:
    return "\n".join(f"  {line[:200]}" for line in log.rstrip().splitlines()[-_LAST_LINES:])
