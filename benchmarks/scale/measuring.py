"""Time and memory of a process and of those that it starts, from /proc."""

from __future__ import annotations

import re
import resource
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.1


def peak_bytes() -> int:
    """Peak resident memory of this process, in bytes. ``ru_maxrss`` will not do: it starts from what the parent had."""
    return _status("self", "VmHWM")


def cpu_seconds() -> float:
    """CPU seconds of this process and of the children that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@dataclass
class Watch:
    """Peak resident memory, in bytes, of a process, of the processes below it, and of all of them at one time; looked at often."""

    parent: int = 0
    children: int = 0
    together: int = 0

    def run(self, process: subprocess.Popen[str]) -> None:
        """Look until the process ends."""
        while process.poll() is None:
            own, others = _status(process.pid, "VmRSS"), sum(_status(pid, "VmRSS") for pid in _below(process.pid))
            self.parent, self.children = max(self.parent, own), max(self.children, others)
            self.together = max(self.together, own + others)
            threading.Event().wait(_POLL_S)


def _status(pid: int | str, field: str) -> int:
    """A field of /proc/PID/status in bytes; 0 when the process has gone."""
    try:
        match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(match[1]) * 1024 if match else 0


def _below(pid: int) -> list[int]:
    """Every descendant."""
    try:
        own = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return own + [pid for child in own for pid in _below(child)]
