"""``make audit``: what is known of every pinned package's vulnerabilities, by pip-audit.

Exit code 0: none; 1: some; 4: the database of advisories could not be asked, or not about everything. pip-audit itself ends with 0 where
an index has no such database (a mirror, say): it skips every package and finds nothing. So a package that is known to be vulnerable is
asked for beside the pins, and one that was skipped is a failure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PINS = Path(__file__).parents[2] / "constraints.txt"
CONTROL = ("flask", "0.12.2")  # CVE-2018-1000656, and more since
UNKNOWN, VULNERABLE = 4, 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service", choices=["pypi", "osv"], default="pypi", help="whose database")
    service = parser.parse_args().service
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "pins.txt"
        wanted.write_text(f"{PINS.read_text()}\n{'=='.join(CONTROL)}\n")
        command = [sys.executable, "-m", "pip_audit", "-r", wanted, "-s", service, "-f", "json"]
        done = subprocess.run(
            [*command, "--no-deps", "--disable-pip", "--progress-spinner", "off"], capture_output=True, text=True, check=False
        )
    code, lines = verdict(done.stdout, done.stderr)
    sys.stderr.write("\n".join(lines) + "\n")
    return code


def verdict(report: str, said: str) -> tuple[int, list[str]]:
    """Exit code and what to say, from what pip-audit has written to stdout and stderr."""
    try:
        packages: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it says nothing")
        return UNKNOWN, [f"the database of advisories could not be asked: {reason}", "nothing is known of any package"]
    skipped = sorted(p["name"] for p in packages if "skip_reason" in p)
    control = next((p for p in packages if (p["name"], p.get("version")) == CONTROL), {})
    pinned = [p for p in packages if p is not control and "skip_reason" not in p]
    lines = [
        f"{p['name']} {p['version']}: {v['id']}, fixed in {', '.join(v['fix_versions']) or 'no version'}"
        for p in pinned
        for v in p["vulns"]
    ]
    if lines:
        return VULNERABLE, lines
    if skipped:
        return UNKNOWN, [f"the database of advisories does not know {len(skipped)} of {len(packages)} packages: {', '.join(skipped)}"]
    if not control.get("vulns"):
        name = " ".join(CONTROL)
        return UNKNOWN, [f"the database of advisories has none for {name}, which is known to be vulnerable: it tells nothing of the others"]
    return 0, [f"{len(pinned)} pinned packages: no known vulnerability"]


if __name__ == "__main__":
    sys.exit(main())
